"""Config files of the released programs of V-MoE and PRC: recognised, and run without these.

`vmoe_prc.convert_config` turns what they return into a configuration of ours.
"""

import contextlib
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

PACKAGE = "vmoe"


@contextlib.contextmanager
def released_package(path: pathlib.Path) -> Iterator[None]:
    """Makes the package that a config file is in importable as `vmoe`, without running it.

    Their config files import each other by `vmoe.configs...`. Nothing happens if the file is
    in no folder `vmoe`, or the package is installed.

    Args:
      path: The config file.
    """
    folders = [folder for folder in path.resolve().parents if folder.name == PACKAGE]
    if not folders or PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is not None:
        yield
        return
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folders[0])]
    sys.modules[PACKAGE] = package
    try:
        yield
    finally:
        # Another checkout may come next.
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def call_get_config(get_config: Callable[..., Any], arguments: str) -> Any:
    """Calls `get_config`, whose argument may be missing or have a default."""
    parameters = inspect.signature(get_config).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        if not positional and not arguments:
            return get_config()
        if positional and positional[0].default is not inspect.Parameter.empty and not arguments:
            return get_config()
    return get_config(arguments)


def is_released(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has fields that only V-MoE's and PRC's configurations have."""
    if "extra_rng_keys" in config or "patch_correspondence" in config:
        return True
    if str(_at(config, "initialization", "name")).startswith("initialize_from_"):
        return True
    if _at(config, "restore", "from") is not None:
        return True
    router = _at(config, "model", "encoder", "moe", "router")
    if not isinstance(router, Mapping):
        return False
    names = ("importance_loss_weight", "load_loss_weight", "gshard_loss_weight")
    names += ("additional_losses", "partition_spec")
    return any(name in router for name in names) or (
        _at(router, "dispatcher", "partition_spec") is not None
    )


def _at(config: Any, *path: str) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
