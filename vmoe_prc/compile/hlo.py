"""Reads optimised HLO text: collectives, calls of kernels, loops and copies."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmoe_prc.errors import RunError

KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16}
ITEM_BITS |= {"u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
_INSTRUCTION = re.compile(
    r"= (?P<result>.*?) (?P<kind>" + "|".join(KINDS) + r"|collective-\w+|ragged-all-to-all)"
    r"(?P<start>-start)?\("
)
# A collective of a TPU that runs behind other work is written in each fusion of this work.
_CHAIN = re.compile(r'chain_id="(\w+)"')
# What leaves a slice of TPUs goes through its hosts.
_BETWEEN_SLICES = re.compile(
    r"= \((?P<result>[^ ]+), .* send\(.*_xla_megascale_transfer_type=\"(?P<kind>\w+)\""
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COPY = re.compile(r"= (\S+|\(.*?\)) copy(?:-start)?\(")
_CALLBACK = re.compile(r'custom_call_target="[^"]*callback[^"]*"|\b(?:infeed|outfeed)\(')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that sends data between devices.

    Attributes:
      kind: Such as 'all-gather'.
      groups: Numbers of the devices that take part together.
      shapes: Shape of each array; of an all-to-all of parts, of all of them together.
      bytes: Size of each array: what a device puts in, or gets out of an all-gather.
    """

    kind: str
    groups: list[list[int]]
    shapes: list[tuple[int, ...]]
    bytes: list[int]


def text_of(compiled: Any) -> str:
    """Returns the text of a compiled program, which the functions below read.

    Args:
      compiled: A `jax.stages.Compiled`.

    Raises:
      RunError: If the compiler gives none.
    """
    text = compiled.as_text()
    if text is None:
        raise RunError("the compiler gives no text of the program")
    return text


def collectives(text: str) -> list[Collective]:
    """Lists each collective of a program."""
    found, chains = [], set()
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        if chain := _CHAIN.search(line):
            if (match["kind"], chain[1]) in chains:
                continue
            chains.add((match["kind"], chain[1]))
        kind, groups = match["kind"], replica_groups(line)
        arrays = [(dims, ITEM_BITS[dtype] // 8) for dtype, dims in _arrays(match["result"])]
        if match["start"]:
            arrays = _results_of_start(kind, match["result"], arrays)
        if kind == "all-to-all" and len(arrays) > 1:
            arrays = [((len(arrays), *arrays[0][0]), arrays[0][1])]
        bytes_ = [size * math.prod(shape) for shape, size in arrays]
        if kind == "reduce-scatter":
            bytes_ = [size * len(groups[0]) for size in bytes_]
        found.append(Collective(kind, groups, [shape for shape, _ in arrays], bytes_))
    return found


def between_slices(text: str) -> dict[str, tuple[int, int]]:
    """Counts what a device sends to other slices of TPUs.

    The compiler takes a collective over several slices apart: into collectives within a slice,
    which `collectives` lists with the numbers that the devices have in their slice, and these.

    Returns:
      Number of arrays and their bytes by kind, such as 'all-reduce'.
    """
    found: dict[str, tuple[int, int]] = {}
    for match in map(_BETWEEN_SLICES.search, text.splitlines()):
        if match:
            kind = match["kind"].lower().replace("_", "-")
            number, size = found.get(kind, (0, 0))
            found[kind] = number + 1, size + _bytes(next(_arrays(match["result"])))
    return found


def _results_of_start(kind: str, result: str, arrays: list[Any]) -> list[Any]:
    """Leaves out the operands, which the result of most starts holds as well, at first."""
    if kind == "collective-permute":
        return arrays[1:2]
    if kind == "ragged-all-to-all":
        return arrays[-1:]
    if kind == "all-gather" or result.startswith("(("):
        return arrays[len(arrays) // 2 :]
    return arrays


def custom_calls(text: str) -> dict[str, int]:
    """Counts the calls of kernels and libraries by their target."""
    return dict(
        collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text)).most_common()
    )


def loops(text: str) -> tuple[int, int]:
    """Counts loops: all, and those whose number of turns is known only when they run."""
    lines = [line for line in text.splitlines() if re.search(r"= .* while\(", line)]
    return len(lines), sum("known_trip_count" not in line for line in lines)


def copies(text: str) -> tuple[int, int]:
    """Counts copies, and the bytes that they make."""
    found = [match[1] for line in text.splitlines() if (match := _COPY.search(line))]
    # A copy-start results in destination, source and context.
    return len(found), sum(_bytes(next(_arrays(result), None)) for result in found)


def host_calls(text: str) -> int:
    """Counts callbacks and feeds from or to the host."""
    return len(_CALLBACK.findall(text))


def largest_arrays(text: str, number: int = 5) -> list[tuple[str, int]]:
    """Lists the largest results of a program: name of the operation and shape, and bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = re.search(r"= ([a-z]\w*\[[\d,]+\])\S* (?!parameter|bitcast|get-tuple)", line)
        if match is None:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        label = f"{match[1]} {_shorten(name[1]) if name else ''}".strip()
        found[label] = _bytes(next(_arrays(match[1])))
    return sorted(found.items(), key=lambda item: -item[1])[:number]


def _shorten(name: str) -> str:
    return "/".join(part for part in name.split("/") if "(" not in part)[-80:]


def _arrays(result: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, dims in _ARRAY.findall(result):
        if dtype in ITEM_BITS:
            yield dtype, tuple(int(n) for n in dims.split(",") if n)


def _bytes(array: tuple[str, tuple[int, ...]] | None) -> int:
    return 0 if array is None else ITEM_BITS[array[0]] * math.prod(array[1]) // 8


def replica_groups(line: str) -> list[list[int]]:
    """Returns the groups of device numbers, however they are written.

    As lists `{{0,1},{2,3}}`, as an iota `[2,4]<=[4,2]T(1,0)`, or as the axes of a mesh,
    `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}`.

    Raises:
      ValueError: If they are written in another way.
    """
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line):
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


def _iota(text: str) -> np.ndarray:
    """Evaluates `[4,2]T(1,0)`: 0, 1, ... in that shape, transposed, and flattened."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"cannot read device numbers {text}")
    shape = _numbers(match[1])
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_numbers(match[2])) if match[2] else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
