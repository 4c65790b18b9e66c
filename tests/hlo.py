"""Reads the collectives out of optimised HLO text."""

import math
import re

import numpy as np

KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
ITEM_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
INSTRUCTION = re.compile(
    r"= (?P<result>.*?) (?P<kind>" + "|".join(KINDS) + r"|collective-\w+|ragged-[\w-]+)"
    r"(?:-start)?\("
)


def collectives(text):
    """Lists each collective: kind, groups of devices, and shape and bytes of each array.

    Arrays are what a device puts in (all-reduce, all-to-all, reduce-scatter) or gets out
    (all-gather); an all-to-all of parts counts as one array of them all.
    """
    found = []
    for line in text.splitlines():
        match = INSTRUCTION.search(line)
        if match is None:
            continue
        groups = replica_groups(line)
        arrays = [
            (tuple(int(n) for n in dims.split(",") if n), ITEM_BYTES[dtype])
            for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", match["result"])
        ]
        if match["kind"] == "all-to-all" and len(arrays) > 1:
            arrays = [((len(arrays), *arrays[0][0]), arrays[0][1])]
        bytes_ = [size * math.prod(shape) for shape, size in arrays]
        if match["kind"] == "reduce-scatter":
            bytes_ = [size * len(groups[0]) for size in bytes_]
        found.append(
            {
                "kind": match["kind"],
                "groups": groups,
                "shapes": [shape for shape, _ in arrays],
                "bytes": bytes_,
            }
        )
    return found


def replica_groups(line):
    """Returns the groups of device numbers, however they are written.

    As lists `{{0,1},{2,3}}`, as an iota `[2,4]<=[4,2]T(1,0)`, or as the axes of a mesh,
    `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}`.
    """
    if match := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S+?),? ", line):
        return _iota(match[2]).reshape(_numbers(match[1])).tolist()
    match = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", line)
    if match is None:
        raise ValueError(f"cannot read the replica groups of: {line[:300]}")
    axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    names, sizes = list(axes), [int(n) for n in axes.values()]
    chosen = re.findall(r"'(\w+)'", match[3])
    if ":" in match[3] or not chosen:
        raise ValueError(f"cannot read axes {match[3]}")
    ids = _iota(match[2]) if match[2] else np.arange(math.prod(sizes))
    last = [names.index(name) for name in chosen]
    ids = np.moveaxis(ids.reshape(sizes), last, range(-len(last), 0))
    return ids.reshape(-1, math.prod(sizes[i] for i in last)).tolist()


def _iota(text):
    """Evaluates `[4,2]T(1,0)`: 0, 1, ... in that shape, transposed, and flattened."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"cannot read device numbers {text}")
    shape = _numbers(match[1])
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_numbers(match[2])) if match[2] else ids).reshape(-1)


def _numbers(text):
    return [int(n) for n in text.split(",")]
