"""Preprocessing written as a string: `decode|two_views(224)|flip_lr|value_range(-1, 1)`.

A factory, registered in `OPS` under its name, makes an op from the arguments in the string:

    @OPS.register()
    def darken(factor: float = 0.5) -> Op:
        def op(example, rng):
            return {**example, "image": (computed(example["image"]) * factor).astype("uint8")}
        return op

An op takes an example, a dict of NumPy arrays, numbers and bytes, and a random generator, and
returns the changed example. It must not change the arrays that it gets. Each example has its own
generator, so that results do not depend on the number of threads.

Every op on `image` also takes `key`, or `inkey` and `outkey`, the entries that it reads and writes.

Errors: a factory raises ValueError for arguments that it refuses; an op raises `PreprocessError`
if the data set does not fit it and `BadExampleError` if one example cannot be used. Any other
exception is a bug in the op and keeps its traceback.
"""

import abc
import ast
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.config.registry import OPS

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

# Characters of a preprocessing string.
MAX_LENGTH = 2_000
# Names that V-MoE and big_vision give the arguments of ops.
ARGUMENTS = {
    "resize_size": "size",
    "crop_size": "size",
    "smaller_size": "size",
    "resize_method": "method",
    "vmin": "low",
    "vmax": "high",
    "depth": "num_classes",
    "key_res": "outkey",
    "key_result": "outkey",
}
_KEYS = ("key", "inkey", "outkey")


class PreprocessError(ValueError):
    """Preprocessing ops that do not fit the data set: one line for the user, no bug."""


class BadExampleError(ValueError):
    """An example that cannot be read, decoded or cropped; another one takes its place."""


class Lazy(abc.ABC):
    """An array that is not computed before a later op, or the end of the string, needs it.

    Attributes:
      shape: Shape of the array.
      dtype: Dtype of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def write(self, out: np.ndarray) -> None:
        """Computes the array into `out`."""


def computed(entry: Any) -> Any:
    """Returns the array of a `Lazy` entry; returns any other entry unchanged."""
    if not isinstance(entry, Lazy):
        return entry
    out = np.empty(entry.shape, entry.dtype)
    entry.write(out)
    return out


def require(example: Example, *keys: str) -> None:
    """Checks that an example has entries.

    Raises:
      PreprocessError: If one is missing.
    """
    for key in keys:
        if key not in example:
            raise PreprocessError(
                f"the example has no {key!r}; it has {', '.join(sorted(example))}"
            )


def pixels_of(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Returns `image`, computed, and the map to it; an array that no op moved needs no `decode`.

    Raises:
      PreprocessError: If there is no image, or it is not decoded.
    """
    require(example, "image")
    image = computed(example["image"])
    if isinstance(image, (bytes, str)) or np.ndim(image) < 3:
        raise PreprocessError("there are no pixels (H, W, C) yet: decode the image first")
    return image, example.get("view_from_image", np.eye(3))


def parse(process: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Splits `op|op(args)` into names, positional and keyword arguments.

    Arguments are Python literals.

    Raises:
      ValueError: If the string is not of this form.
    """
    if len(process) > MAX_LENGTH:
        # Python's parser fails in strange ways on thousands of nested terms.
        raise ValueError(f"is of {len(process):,} characters, and at most {MAX_LENGTH:,} are read")
    try:
        tree = ast.parse(process, mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = getattr(error, "msg", str(error))
        raise ValueError(f"expected op|op(args)|..., but {reason}") from None
    nodes = []
    # Python parses `a|b|c` as (a|b)|c: the last op is at the top of the tree.
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
    """Applies ops to one example, such as `{"image": jpeg, "label": 3}`.

    Args:
      ops: Made by `build`.
      example: Arrays, numbers and bytes.
      seed: Seed of the randomness.

    Returns:
      The preprocessed example; lazy entries are computed.
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
            kwargs = {_keyword(word): ast.literal_eval(word.value) for word in node.keywords}
        except ValueError:
            raise ValueError(f"the arguments of {node.func.id} must be literals") from None
        return node.func.id, args, kwargs
    raise ValueError(f"expected op|op(args)|..., not {ast.unparse(node)!r}")


def _keyword(word: ast.keyword) -> str:
    if word.arg is None:
        raise ValueError("expected name=value")
    return word.arg


def _make(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], field: str) -> Op:
    if name not in OPS:
        allowed = f"unknown op; allowed: {', '.join(OPS)}"
        raise ConfigError(field, name, allowed, nearest(name, OPS))
    factory = OPS[name]
    given = kwargs
    kwargs = _our_arguments(kwargs, inspect.signature(factory).parameters)
    written = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in given.items())])
    call = f"{name}({written})"
    signature = inspect.signature(factory)
    expected = f"expected {name}{signature.replace(return_annotation=signature.empty)}"
    keys = _own_keys(kwargs, signature.parameters)
    if unknown := [key for key in kwargs if key not in signature.parameters]:
        near = nearest(unknown[0], signature.parameters)
        raise ConfigError(field, call, f"unknown argument {unknown[0]!r}; {expected}", near)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ConfigError(field, call, f"{error}; {expected}") from None
    for key, value in bound.items():
        parameter = signature.parameters[key]
        values = value if parameter.kind is parameter.VAR_POSITIONAL else (value,)
        if not all(_fits(x, parameter.annotation) for x in values):
            raise ConfigError(field, call, f"{key} = {value!r} is of another type; {expected}")
    if not all(isinstance(value, str) for value in keys.values()):
        raise ConfigError(field, call, f"{', '.join(keys)} must be names of entries")
    try:
        op = factory(*args, **kwargs)
        return _on_entries(op, **keys) if keys else op
    except ValueError as error:
        # A factory refuses its arguments by a ValueError; any other error is a bug in it.
        raise ConfigError(field, call, str(error)) from error


def _our_arguments(
    kwargs: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Renames arguments that V-MoE and big_vision name otherwise."""
    renamed = {}
    for name, value in kwargs.items():
        ours = ARGUMENTS.get(name, name)
        renamed[name if name in parameters or ours not in parameters else ours] = value
    if "key" in renamed and "key" not in parameters and "inkey" in parameters:
        key = renamed.pop("key")
        renamed = {"inkey": key, "outkey": key, **renamed}
    return renamed


def _own_keys(
    kwargs: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Takes the entries of an op on `image` from its arguments."""
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return {}
    return {k: kwargs.pop(k) for k in _KEYS if k in kwargs and k not in parameters}


def _on_entries(op: Op, key: str = "image", inkey: str = "", outkey: str = "") -> Op:
    """Applies an op on `image` to an entry, and writes the result to an entry."""
    inkey, outkey = inkey or key, outkey or key
    if inkey == outkey == "image":
        return op
    # Value ranges of images are applied on the device, value ranges of other entries here.
    op = getattr(op, "on_host", op)

    def moved(example: Example, rng: np.random.Generator) -> Example:
        require(example, inkey)
        inner = {k: v for k, v in example.items() if k not in ("image", "view_from_image")}
        inner["image"] = example[inkey]
        if _map_name(inkey) in example:
            inner["view_from_image"] = example[_map_name(inkey)]
        done = op(inner, rng)
        done = {_renamed_entry(k, outkey): computed(v) for k, v in done.items()}
        kept = {k: v for k, v in example.items() if k in ("image", "view_from_image")}
        return {**kept, **done}

    return moved


def _map_name(key: str) -> str:
    return "view_from_image" if key == "image" else f"view_from_{key}"


def _renamed_entry(name: str, outkey: str) -> str:
    return {"image": outkey, "view_from_image": _map_name(outkey)}.get(name, name)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a literal fits an annotation; annotations other than these are not checked.

    Understands int, float (finite; an int fits), str, bool, tuples (a list fits) and unions.
    """
    if annotation is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) < 2.0**63 and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if annotation in (str, bool):
        return isinstance(value, annotation)
    parts = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(annotation) is tuple and Ellipsis not in parts:
        sized = isinstance(value, (tuple, list)) and len(value) == len(parts)
        return sized and all(map(_fits, value, parts))
    return annotation is not type(None) or value is None
