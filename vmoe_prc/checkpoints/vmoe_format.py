"""Checkpoints in the format of the released V-MoE models.

`PREFIX.index` names the arrays and, for each slice of them, its file
`PREFIX.data-00000-of-0000N`. All of them are msgpack. The tree of names, flattened with sorted
keys, numbers the arrays.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from etils import epath

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.runtime.trees import map_named, named_leaves
from vmoe_prc.workdir.atomic import atomic_write

VERSION = "20220622"
_MARKER = "__msgpack_array_chunk_a87ca2__"
_ARRAY, _SLICES, _ENTRY = 1, 6, 8  # Extension types of msgpack.
_MAX_CHUNK_BYTES = 2**30
_READ_BYTES = 2**20
_MAX_THREADS = 16

_MAX_ITEMS = 2**20
_MAX_SHARDS = 99_999  # File names have five digits.
_MAX_CELLS = 2**22
# Errors that damaged files raise in msgpack, NumPy and here.
_FORMAT_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError),
    *(RecursionError, msgpack.UnpackException),
)

Shape = tuple[int, ...]
# (start, stop) of each dimension.
Box = tuple[tuple[int, int], ...]
# By number of a data file and number of an array: slices to be read.
Wanted = dict[int, dict[int, set[Box]]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array as the index describes it.

    Attributes:
      number: Its number in the data files.
      shape: Its whole shape.
      dtype: Its dtype.
      boxes: The slices that it is stored in.
      shards: Number of the data file of each slice.
    """

    number: int
    shape: tuple[int, ...]
    dtype: np.dtype
    boxes: tuple[Box, ...]
    shards: tuple[int, ...]


def restore(
    prefix: str | os.PathLike[str], shardings: Any = None, names: Collection[str] | None = None
) -> dict[str, Any]:
    """Reads a checkpoint, or parts of it.

    Args:
      prefix: Path without `.index`; local, or `gs://`.
      shardings: Nested dicts, as in the checkpoint, of the shardings to read arrays to;
        arrays without one are not read. By default arrays are read to the host.
      names: Names of the arrays to read to the host, such as `params/head/kernel`; all if
        None. Other arrays are None.

    Returns:
      Nested dicts of NumPy arrays; with `shardings`, of `jax.Array`s, for which a process
      keeps only the slices, and opens only the files, that its own devices need.

    Raises:
      CheckpointError: If a file is missing, truncated or not of this format, or a name in
        `shardings` is not in the checkpoint.
    """
    index, shard_count = read_index(prefix)
    stored = entries = named_leaves(index)
    if shardings is None:
        if names is not None:
            entries = {name: entry for name, entry in entries.items() if name in names}
        places = {name: {_whole(entry.shape)} for name, entry in entries.items()}
    else:
        targets = named_leaves(shardings)
        if unknown := sorted(targets.keys() - entries.keys()):
            raise CheckpointError(f"{os.fspath(prefix)}.index: no array {unknown[0]!r}")
        entries = {name: entries[name] for name in targets}
        places = {name: _device_boxes(entry, targets[name]) for name, entry in entries.items()}
    wanted = _wanted_slices(entries, places)
    # Before memory is taken: no file holds more than its own bytes.
    _check_sizes(prefix, shard_count, stored.values(), wanted)
    buffers = {
        name: {box: np.empty([b - a for a, b in box], entries[name].dtype) for box in boxes}
        for name, boxes in places.items()
    }
    _fill(prefix, shard_count, entries, buffers, wanted)
    if shardings is None:
        whole = {name: buffers[name][_whole(entry.shape)] for name, entry in entries.items()}
        return map_named(lambda name, _: whole.get(name), index)
    return map_named(
        lambda name, _: _on_devices(entries[name], targets[name], buffers[name]), shardings
    )


def read_index(prefix: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
    """Reads the index of a checkpoint.

    Args:
      prefix: Path without `.index`.

    Returns:
      Nested dicts of `Entry`, and the number of data files.

    Raises:
      CheckpointError: If it is missing, truncated or of another format.
    """
    path = epath.Path(f"{os.fspath(prefix)}.index")
    with _naming(path):
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_read_entry, strict_map_key=False)
        version, shard_count = content.get("version", VERSION), content["shard_count"]
        if version != VERSION:
            raise ValueError(f"version {version!r}; only {VERSION} and files without are known")
        if type(shard_count) is not int or not 0 < shard_count <= _MAX_SHARDS:
            raise ValueError(f"shard_count = {shard_count!r}")
        _check_names(content["index"])
        leaves, structure = jax.tree.flatten(content["index"])
        for leaf in leaves:
            _check_entry(leaf, shard_count)
        numbered = [dataclasses.replace(leaf, number=i) for i, leaf in enumerate(leaves)]
        return structure.unflatten(numbered), shard_count


def save(prefix: str | os.PathLike[str], tree: Any, num_shards: int = 1) -> None:
    """Writes a checkpoint that V-MoE's program and `restore` can read.

    All files are written under other names first; the index is the last to appear.

    Args:
      prefix: Path without `.index`; its directory is made if missing.
      tree: Nested dicts, or another tree that Flax can serialise, of arrays.
      num_shards: Number of data files, which get about the same number of bytes.

    Raises:
      ValueError: If `num_shards` is not positive.
    """
    if num_shards < 1:
        raise ValueError(f"num_shards = {num_shards}: must be at least 1")
    tree = jax.tree.map(np.asarray, flax.serialization.to_state_dict(tree))
    arrays, structure = jax.tree.flatten(tree)
    pieces = _assign(arrays, num_shards)
    entries = [_pack_entry(x, p) for x, p in zip(arrays, pieces, strict=True)]
    index = {
        "shard_count": num_shards,
        "index": structure.unflatten(entries),
        "version": VERSION,
    }
    with contextlib.ExitStack() as stack:
        # Entered first, the index takes its place last.
        stack.enter_context(atomic_write(f"{prefix}.index")).write_bytes(_packed(index))
        for shard in range(num_shards):
            temporary = stack.enter_context(atomic_write(_data_path(prefix, shard, num_shards)))
            with temporary.open("wb") as file:
                for block in _pack_shard(arrays, pieces, shard):
                    file.write(block)


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """Names the file in what goes wrong with it."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except msgpack.OutOfData:
        raise CheckpointError(f"{path}: truncated") from None
    except _FORMAT_ERRORS as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: truncated, or of another format: {reason}") from error


def _wanted_slices(entries: Mapping[str, Entry], places: Mapping[str, set[Box]]) -> Wanted:
    """Finds the stored slices that overlap the places to be filled."""
    wanted: Wanted = collections.defaultdict(dict)
    for name, entry in entries.items():
        for box, shard in zip(entry.boxes, entry.shards, strict=True):
            if any(_overlap(box, other) is not None for other in places[name]):
                wanted[shard].setdefault(entry.number, set()).add(box)
    return wanted


def _check_sizes(
    prefix: str | os.PathLike[str], shard_count: int, entries: Iterable[Entry], shards: Wanted
) -> None:
    """Checks that each data file has at least the bytes that the index places there."""
    needed: dict[int, int] = collections.Counter()
    for entry in entries:
        for box, shard in zip(entry.boxes, entry.shards, strict=True):
            needed[shard] += _volume(box) * entry.dtype.itemsize
    for shard in sorted(shards):
        path = _data_path(prefix, shard, shard_count)
        with _naming(path):
            size = path.stat().length
            if size < needed[shard]:
                raise ValueError(f"{size:,} bytes, and the index places {needed[shard]:,} there")


def _fill(
    prefix: str | os.PathLike[str],
    shard_count: int,
    entries: Mapping[str, Entry],
    buffers: Mapping[str, Mapping[Box, np.ndarray]],
    wanted: Wanted,
) -> None:
    """Copies the wanted slices to the buffers, which are parts of the arrays by their boxes."""
    numbered = {entry.number: (name, entry) for name, entry in entries.items()}

    def read(shard: int) -> None:
        path = _data_path(prefix, shard, shard_count)
        missing = wanted[shard]
        with _naming(path), path.open("rb") as file:
            for number, box, chunk in _read_shard(file, wanted[shard]):
                name, entry = numbered[number]
                if box not in missing[number] or chunk.dtype != entry.dtype:
                    raise ValueError(f"{name} is not as the index describes it")
                missing[number].remove(box)
                for place, buffer in buffers[name].items():
                    _copy_overlap(chunk, box, buffer, place)
            for number, boxes in missing.items():
                if boxes:
                    raise ValueError(f"lacks a slice of {numbered[number][0]}")

    with concurrent.futures.ThreadPoolExecutor(_MAX_THREADS) as pool:
        list(pool.map(read, sorted(wanted)))


def _read_shard(file: Any, numbers: Mapping[int, Any]) -> Iterator[tuple[int, Box, np.ndarray]]:
    """Yields the slices of the wanted arrays of a data file; other arrays are passed over."""
    unpacker = msgpack.Unpacker(
        file,
        read_size=_READ_BYTES,
        max_buffer_size=2**31 - 1,
        # msgpack allocates memory for the number of items that a header gives.
        max_array_len=_MAX_ITEMS,
        max_map_len=_MAX_ITEMS,
        strict_map_key=False,
    )
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        if key == _MARKER or int(key) not in numbers:
            unpacker.skip()
            continue
        for _ in range(unpacker.read_array_header()):
            parts, slices = unpacker.unpack()
            box = _read_box(slices.data)
            flat = [_read_array(part.data) for part in parts]
            chunk = flat[0] if len(flat) == 1 else np.concatenate(flat)
            if box not in numbers[int(key)] or chunk.size != _volume(box):
                raise ValueError(f"array {key} has a slice {box} that the index does not have")
            yield int(key), box, chunk.reshape([stop - start for start, stop in box])


def _read_array(data: bytes) -> np.ndarray:
    shape, dtype, raw = msgpack.unpackb(data)
    return np.frombuffer(raw, jnp.dtype(dtype)).reshape(shape)


def _read_box(data: bytes) -> Box:
    box = []
    for item in msgpack.unpackb(data):
        start, stop, step = msgpack.unpackb(item)
        if step not in (None, 1):
            raise ValueError(f"a slice with step {step}")
        box.append((start, stop))
    return tuple(box)


def _read_entry(code: int, data: bytes) -> Entry:
    if code != _ENTRY:
        raise ValueError(f"unknown extension {code} in the index")
    described, boxes, shards = msgpack.unpackb(data)
    shape, dtype, *_ = msgpack.unpackb(described, strict_map_key=False)
    return Entry(-1, tuple(shape), jnp.dtype(dtype), tuple(map(_read_box, boxes)), tuple(shards))


def _check_names(tree: Any) -> None:
    """Checks that the tree is of dicts, whose names tell the arrays apart when joined by '/'."""
    if isinstance(tree, Entry):
        return
    if not isinstance(tree, dict):
        raise ValueError(f"{tree!r:.80} in the tree describes no array")
    for name, child in tree.items():
        if not isinstance(name, str) or "/" in name or not name:
            raise ValueError(f"{name!r:.80} is no name of an array or group")
        _check_names(child)


def _check_entry(entry: Entry, shard_count: int) -> None:
    """Checks that the slices are parts of the array, and have each of its elements once."""
    shape, boxes = entry.shape, entry.boxes
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    if entry.dtype.kind not in "biufcV" or entry.dtype.hasobject or not entry.dtype.itemsize:
        raise ValueError(f"an array of dtype {entry.dtype}")
    if len(boxes) != len(entry.shards):
        raise ValueError(f"{len(boxes)} slices in {len(entry.shards)} files")
    if not all(type(shard) is int and 0 <= shard < shard_count for shard in entry.shards):
        raise ValueError(f"a slice in file {entry.shards} of {shard_count}")
    for box in boxes:
        inside = len(box) == len(shape) and all(
            type(start) is type(stop) is int and 0 <= start <= stop <= size
            for (start, stop), size in zip(box, shape, strict=False)
        )
        if not inside:
            raise ValueError(f"a slice {box} of an array of shape {shape}")
    if not _is_partition(shape, [box for box in boxes if _volume(box)]):
        raise ValueError(f"the slices of an array of shape {shape} leave holes or overlap")


def _is_partition(shape: Shape, boxes: Sequence[Box]) -> bool:
    """Whether each element of an array is in exactly one of the boxes."""
    if sum(map(_volume, boxes)) != math.prod(shape):
        return False
    if len(boxes) < 2:
        return True
    # Between neighbouring cuts all elements are alike, so one cell represents them.
    cuts = [sorted({edge for box in boxes for edge in box[axis]}) for axis in range(len(shape))]
    cells = [len(edges) - 1 for edges in cuts]
    if math.prod(cells) > _MAX_CELLS:
        raise ValueError(f"an array of shape {shape} in {len(boxes)} irregular slices")
    counts = np.zeros(cells, np.uint8)
    positions = [{edge: i for i, edge in enumerate(edges)} for edges in cuts]
    for box in boxes:
        where = tuple(slice(p[a], p[b]) for p, (a, b) in zip(positions, box, strict=True))
        if counts[where].any():
            return False
        counts[where] = 1
    return bool(counts.all())


def _assign(arrays: Sequence[np.ndarray], num_shards: int) -> list[list[tuple[Box, int]]]:
    """Cuts large arrays along their first axis; from the largest on, the emptiest file is next."""
    share = sum(x.nbytes for x in arrays) / num_shards
    sizes = [0] * num_shards
    assigned: list[list[tuple[Box, int]]] = [[] for _ in arrays]
    for i in sorted(range(len(arrays)), key=lambda i: -arrays[i].nbytes):
        x = arrays[i]
        count = min(math.ceil(x.nbytes / share), x.shape[0]) if x.ndim and x.nbytes else 1
        for piece in range(count):
            box = list(_whole(x.shape))
            if count > 1:
                box[0] = (piece * x.shape[0] // count, (piece + 1) * x.shape[0] // count)
            shard = sizes.index(min(sizes))
            sizes[shard] += x.nbytes // count
            assigned[i].append((tuple(box), shard))
    return assigned


def _pack_shard(
    arrays: Sequence[np.ndarray], pieces: Sequence[Sequence[tuple[Box, int]]], shard: int
) -> Iterator[bytes]:
    """Yields a data file in blocks, so that no more than one slice is held twice."""
    packer = msgpack.Packer()
    held = {
        str(i): (x, [box for box, where in p if where == shard])
        for i, (x, p) in enumerate(zip(arrays, pieces, strict=True))
    }
    held = {key: (x, boxes) for key, (x, boxes) in held.items() if boxes}
    yield packer.pack_map_header(1 + len(held))
    yield packer.pack(_MARKER) + packer.pack(True)
    for key, (x, boxes) in held.items():
        yield packer.pack(key) + packer.pack_array_header(len(boxes))
        for box in boxes:
            flat = x[tuple(slice(*side) for side in box)].reshape(-1)
            length = max(1, _MAX_CHUNK_BYTES // x.dtype.itemsize)
            starts = range(0, max(1, flat.size), length)
            yield packer.pack_array_header(2) + packer.pack_array_header(len(starts))
            for start in starts:
                yield packer.pack(_pack_array(flat[start : start + length]))
            yield packer.pack(msgpack.ExtType(_SLICES, _pack_box(box)))


def _pack_array(x: np.ndarray) -> msgpack.ExtType:
    return msgpack.ExtType(_ARRAY, _packed((x.shape, x.dtype.name, x.tobytes())))


def _packed(values: Any) -> bytes:
    packed = msgpack.packb(values)
    # It would be None for a packer that keeps its buffer.
    assert packed is not None
    return packed


def _pack_box(box: Box) -> bytes:
    return _packed([_packed((start, stop, None)) for start, stop in box])


def _pack_entry(x: np.ndarray, pieces: Sequence[tuple[Box, int]]) -> msgpack.ExtType:
    described = _packed((x.shape, x.dtype.name, False, {}))
    boxes = [_pack_box(box) for box, _ in pieces]
    return msgpack.ExtType(_ENTRY, _packed((described, boxes, [s for _, s in pieces])))


def _device_boxes(entry: Entry, sharding: jax.sharding.Sharding) -> set[Box]:
    """Returns the parts of an array that the devices of this process hold."""
    indices = sharding.addressable_devices_indices_map(entry.shape).values()
    return {_box(index, entry) for index in indices}


def _on_devices(
    entry: Entry, sharding: jax.sharding.Sharding, buffers: Mapping[Box, np.ndarray]
) -> jax.Array:
    return jax.make_array_from_callback(
        entry.shape, sharding, lambda index: buffers[_box(index, entry)]
    )


def _box(index: Sequence[slice] | None, entry: Entry) -> Box:
    # None is the index of devices that hold nothing, for which nobody asks.
    assert index is not None
    return tuple(s.indices(size)[:2] for s, size in zip(index, entry.shape, strict=True))


def _whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def _volume(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _overlap(a: Box, b: Box) -> Box | None:
    common = tuple((max(s, t), min(e, f)) for (s, e), (t, f) in zip(a, b, strict=True))
    return None if any(start >= stop for start, stop in common) else common


def _copy_overlap(source: np.ndarray, source_box: Box, target: np.ndarray, target_box: Box):
    common = _overlap(source_box, target_box)
    if common is not None:
        target[_within(common, target_box)] = source[_within(common, source_box)]


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(box, outer, strict=True)
    )


def _data_path(prefix: str | os.PathLike[str], shard: int, shard_count: int) -> epath.Path:
    return epath.Path(f"{os.fspath(prefix)}.data-{shard:05d}-of-{shard_count:05d}")
