"""Registries: what a configuration may name, each with a factory and its options.

A new router, loss, evaluator, op or data set is one file that registers itself:

    @ROUTERS.register(options=MyRouterOptions)
    class MyRouter(nn.Module): ...

The files of this package are imported when a registry is first looked into; a file elsewhere
registers when a configuration imports it.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vmoe_prc.config.options import option

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of an entry that has none."""


class UnknownNameError(KeyError, ValueError):
    """A registry has no entry of this name; the text lists the names that it has."""

    def __str__(self) -> str:
        return self.args[0]


class Registry(Mapping[str, Any]):
    """Factories of one kind by name.

    A section of the configuration that chooses an entry has its name under `key` and the
    fields of the entry's options dataclass next to it.

    Args:
      kind: The kind in words, for errors, such as 'router'.
      packages: Modules and packages of ours that register entries; they are imported, with
        their submodules, when the registry is first looked into.
      key: Field of a section that holds the name of the entry.
      common: Dataclass of options that the caller of every entry uses; None for none.
    """

    def __init__(
        self,
        kind: str,
        packages: Sequence[str] = (),
        key: str = "name",
        common: type | None = None,
    ):
        self.kind, self.key, self.common = kind, key, common
        self._packages, self._loaded = tuple(packages), False
        self._factories: dict[str, Any] = {}
        self._options: dict[str, type] = {}

    def register(self, name: str | None = None, *, options: type = NoOptions) -> Callable[[T], T]:
        """Returns a decorator that registers a factory.

        Args:
          name: Name in configurations; the factory's own name if None.
          options: Dataclass of its options, see `config.options`.

        Raises:
          ValueError: If another factory has the name.
        """

        def decorate(factory: T) -> T:
            key = name or getattr(factory, "__name__", repr(factory))
            known = self._factories.get(key)
            same = known is not None and known.__module__ == factory.__module__
            if known is not None and not same:  # a module that is imported again may register again
                raise ValueError(f"{self.kind} {key!r} is registered by {known.__module__}, too")
            self._factories[key], self._options[key] = factory, options
            return factory

        return decorate

    def options(self, name: str) -> type:
        """Returns the dataclass of the options of an entry.

        Raises:
          UnknownNameError: If there is no such entry.
        """
        self[name]
        return self._options[name]

    def __getitem__(self, name: str) -> Any:
        self._load()
        if name not in self._factories:
            near = difflib.get_close_matches(str(name), self._factories, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(sorted(self._factories))
            raise UnknownNameError(f"unknown {self.kind} {name!r}; allowed: {allowed}{hint}")
        return self._factories[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._factories))

    def __len__(self) -> int:
        self._load()
        return len(self._factories)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for package in self._packages:
            module = importlib.import_module(package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                importlib.import_module(f"{package}.{found.name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalOptions:
    """When an evaluator runs."""

    every_steps: int = option(
        1000, "Steps between evaluations; the last step is evaluated, too.", minimum=1
    )


ROUTERS = Registry("router", ["vmoe_prc.models.routing"])
DISPATCHERS = Registry("dispatcher", ["vmoe_prc.models.dispatch"])
POSITION_EMBEDDINGS = Registry("position embedding", ["vmoe_prc.models.vit"])
MODELS = Registry("model", ["vmoe_prc.models"])
CLASSIFICATION_LOSSES = Registry("classification loss", ["vmoe_prc.losses.classification"])
BALANCE_LOSSES = Registry("balance loss", ["vmoe_prc.losses.balance"])
CONSISTENCY_LOSSES = Registry("consistency loss", ["vmoe_prc.losses.consistency"])
SCHEDULES = Registry("schedule", ["vmoe_prc.schedule"], key="schedule")
OPTIMIZERS = Registry("optimizer", ["vmoe_prc.optimizer"])
EVALUATORS = Registry(
    "evaluator",
    ["vmoe_prc.evaluation", "vmoe_prc.figures.mistakes", "vmoe_prc.figures.training"],
    common=IntervalOptions,
)
LOGGERS = Registry("metric logger", ["vmoe_prc.workdir.loggers"])
OPS = Registry("preprocessing op", ["vmoe_prc.data.ops"])
DATASETS = Registry("data set", ["vmoe_prc.data.datasets"])
_EXPORTS = ("folder", "onnx", "saved_model", "stablehlo")
EXPORTS = Registry("export format", [f"vmoe_prc.export.{name}" for name in _EXPORTS])
