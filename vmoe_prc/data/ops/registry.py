"""Preprocessing written as a string: `decode|two_views(224)|flip_lr|value_range(-1, 1)`.

An op is made by a factory, registered under its name, from the arguments in the string.
It takes an example, a dict of NumPy arrays, numbers and bytes, and a generator of random numbers,
and returns the changed example. Each example has a generator of its own, so that a run can be
repeated whatever the number of threads.
"""

import abc
import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vmoe_prc.config import ConfigError, nearest

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

# Entry of (low, high): an image of bytes stands for values between them. See `feed`.
VALUE_RANGE = "value_range"

REGISTRY: dict[str, Callable[..., Op]] = {}


class BadExampleError(ValueError):
    """An example that cannot be read, decoded, or cropped as it should be."""


class Lazy(abc.ABC):
    """An entry that an op leaves to be computed by a later op, or at the end of the string.

    Attributes:
      shape: That of the array to come.
      dtype: That of the array to come.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def write(self, out: np.ndarray) -> None:
        """Computes the entry."""


def computed(entry: Any) -> Any:
    """Returns the array that an entry stands for; any but a lazy one stands for itself."""
    if not isinstance(entry, Lazy):
        return entry
    out = np.empty(entry.shape, entry.dtype)
    entry.write(out)
    return out


def register(factory: Callable[..., Op]) -> Callable[..., Op]:
    """Makes an op known by the name of its factory."""
    REGISTRY[factory.__name__] = factory
    return factory


@functools.cache
def load_ops() -> None:
    """Imports every module of `vmoe_prc.data.ops`, which registers its ops."""
    package = importlib.import_module("vmoe_prc.data.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def parse(process: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Splits `op|op(args)` into names, positional and keyword arguments.

    Arguments are Python literals.

    Raises:
      ValueError: If the string is not of this form.
    """
    try:
        tree = ast.parse(process, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expected op|op(args)|..., but {error.msg}") from None
    nodes = []
    # To Python `a|b|c` is (a|b)|c: the last op is at the top of the tree.
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        nodes.append(tree.right)
        tree = tree.left
    return [_parse_op(node) for node in reversed([*nodes, tree])]


def build(process: str, field: str) -> list[Op]:
    """Makes the ops of a preprocessing string.

    Args:
      process: The string.
      field: Name of its field, for errors.

    Raises:
      ConfigError: If an op is unknown or its arguments do not fit.
    """
    try:
        calls = parse(process)
    except ValueError as error:
        raise ConfigError(field, process, str(error)) from None
    return [_make(name, args, kwargs, field) for name, args, kwargs in calls]


def apply(ops: Sequence[Op], example: Example, seed: int = 0) -> Example:
    """Tries ops on one example, such as `{"image": jpeg, "label": 3}`.

    Args:
      ops: Made by `build`.
      example: Arrays, numbers and bytes.
      seed: Seed of the randomness.

    Returns:
      The example that comes out, of computed entries.
    """
    rng = np.random.default_rng(seed)
    for op in ops:
        example = op(example, rng)
    return {key: computed(entry) for key, entry in example.items()}


def _parse_op(node: ast.expr) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    if isinstance(node, ast.Name):
        return node.id, (), {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        try:
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            kwargs = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        except ValueError:
            raise ValueError(f"the arguments of {node.func.id} must be literals") from None
        return node.func.id, args, kwargs
    raise ValueError(f"expected op|op(args)|..., not {ast.unparse(node)!r}")


def _make(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], field: str) -> Op:
    load_ops()
    if name not in REGISTRY:
        allowed = f"unknown op; allowed: {', '.join(sorted(REGISTRY))}"
        raise ConfigError(field, name, allowed, nearest(name, REGISTRY))
    factory = REGISTRY[name]
    written = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
    call = f"{name}({written})"
    signature = inspect.signature(factory)
    expected = f"expected {name}{signature.replace(return_annotation=signature.empty)}"
    if unknown := [key for key in kwargs if key not in signature.parameters]:
        near = nearest(unknown[0], signature.parameters)
        raise ConfigError(field, call, f"unknown argument {unknown[0]!r}; {expected}", near)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(field, call, f"{error}; {expected}") from None
    try:
        return factory(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(field, call, str(error)) from None
