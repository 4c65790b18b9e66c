"""Ops on the entries of an example, by the names that V-MoE and big_vision give them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops.registry import Example, Op, PreprocessError, computed, require


@OPS.register()
def drop(*keys: str) -> Op:
    """Drops these entries of the example; missing ones are no error."""
    return lambda example, rng: {k: entry for k, entry in example.items() if k not in keys}


@OPS.register()
def flatten(keys: tuple[str, ...] | None = None) -> Op:
    """Gives entries of nested entries names such as `objects/label`; all if no keys are given."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        flat = {}
        for key, entry in example.items():
            nested = isinstance(entry, Mapping) and (keys is None or key in keys)
            flat |= _flat(entry, key) if nested else {key: entry}
        return flat

    return op


@OPS.register()
def reshape(new_shape: tuple[int, ...], inkey: str = "image", outkey: str = "image") -> Op:
    """Reshapes an entry; one side may be -1. An image loses the map of its pixels."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, inkey)
        array = np.asarray(computed(example[inkey]))
        try:
            example = {**example, outkey: array.reshape(new_shape)}
        except ValueError as error:
            raise PreprocessError(f"{inkey!r}: {error}") from None
        return {k: v for k, v in example.items() if (k, outkey) != ("view_from_image", "image")}

    return op


@OPS.register()
def setdefault(key: str, value: Any) -> Op:
    """Sets an entry that is missing or empty."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        if key in example and (not hasattr(example[key], "size") or example[key].size):
            return example
        dtype = example[key].dtype if key in example else None
        return {**example, key: np.asarray(value, dtype)}

    return op


@OPS.register()
def concat(inkeys: tuple[str, ...], outkey: str | None = None, axis: int = -1) -> Op:
    """Concatenates entries along an axis, into the first of them if no `outkey` is given."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, *inkeys)
        arrays = [np.asarray(computed(example[key])) for key in inkeys]
        return {**example, outkey or inkeys[0]: np.concatenate(arrays, axis)}

    return op


@OPS.register()
def choice(
    n: str | int = "single",
    key: str | tuple[str, ...] | None = None,
    fewer_ok: bool = False,
    inkey: str | tuple[str, ...] | None = None,
    outkey: str | tuple[str, ...] | None = None,
) -> Op:
    """Chooses the same random items of entries, without repetition and in their order.

    Args:
      n: Number of items; 'single' chooses one and drops the axis.
      key: Entries that are read and written, with the same first axis.
      fewer_ok: Whether fewer than `n` items are enough.
      inkey: Entries that are read.
      outkey: Entries that are written.
    """
    sources, targets = _names(inkey or key), _names(outkey or key)
    if not sources or len(sources) != len(targets):
        raise ValueError("give key, or as many inkey as outkey")
    if n != "single" and not (isinstance(n, int) and n > 0):
        raise ValueError(f"n = {n!r} must be 'single' or a positive integer")

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, *sources)
        arrays = [np.asarray(computed(example[key])) for key in sources]
        count = len(arrays[0]) if arrays[0].ndim else 0
        needed = 1 if n == "single" else int(n)
        if any(len(x) != count for x in arrays if x.ndim) or (count < needed and not fewer_ok):
            raise PreprocessError(f"choice of {needed} needs as many items, and there are {count}")
        if n == "single":
            items: Any = int(rng.random() * count)
        else:
            items = np.sort(rng.permutation(count)[:needed])
        return {**example, **{t: x[items] for t, x in zip(targets, arrays, strict=True)}}

    return op


@OPS.register()
def ignore_no_labels(labels_key: str = "labels") -> Op:
    """V-MoE's name for `config.dataset.*.unlabelled = 'left_out'`, the default here."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, labels_key)
        return example

    return op


@OPS.register()
def randu(key: str) -> Op:
    """Draws a number of [0, 1) for other ops, such as `det_fliplr`."""
    return lambda example, rng: {**example, key: np.float32(rng.random())}


def _names(keys: str | Sequence[str] | None) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys or ())


def _flat(entry: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        return {prefix: entry}
    return {n: x for key, item in entry.items() for n, x in _flat(item, f"{prefix}/{key}").items()}
