"""Offsets of the records of TFRecord files: found once, and kept in a file next to them."""

import collections
import concurrent.futures
import contextlib
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from etils import epath

from vmoe_prc.data.locks import file_lock
from vmoe_prc.data.remote import is_remote
from vmoe_prc.data.tfrecords import MIN_RECORD_SIZE, find_records
from vmoe_prc.workdir.atomic import atomic_write

INDEX_SUFFIX = ".offsets.npz"
_THREADS = 16

# Name, size in bytes and time of change (ns) of a file: its index is valid as long as they hold.
_State = tuple[str, int, int]


def indexed(paths: Sequence[str], sizes: Sequence[int]) -> list[np.ndarray]:
    """Returns where the records of each file begin, and where its last one ends.

    Files that the index file lacks are read, and added to it if it can be written.

    Args:
      paths: TFRecord files of one directory.
      sizes: How many records each should have.

    Raises:
      OSError, tf.errors.OpError: If a file cannot be read.
    """
    by_index = collections.defaultdict(list)
    for path in paths:
        by_index[index_path(path)].append(path)
    wanted = dict(zip(paths, sizes, strict=True))
    offsets: dict[str, np.ndarray] = {}
    for index, files in by_index.items():
        offsets |= _of_one_split(index, {path: wanted[path] for path in files})
    return [offsets[path] for path in paths]


def index_path(path: str) -> epath.Path:
    """Returns the index file of the split that a file such as x-train.tfrecord-0-of-4 is of."""
    split = epath.Path(path).name.partition(".")[0]
    return epath.Path(path).parent / f"{split}{INDEX_SUFFIX}"


def _of_one_split(index: epath.Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    with contextlib.ExitStack() as stack:
        # One process finds the records; the others wait, and read the index file.
        with contextlib.suppress(OSError):
            stack.enter_context(file_lock(index.parent / f".{index.name}.lock"))
        return _load_or_find(index, sizes)


def _load_or_find(index: epath.Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        states = dict(zip(sizes, threads.map(_state, sizes), strict=True))
        known = _load(index)
        missing = [path for path, state in states.items() if state not in known]
        if missing:
            logging.info("finding the records of %d files, once", len(missing))
        found = dict(zip(missing, threads.map(find_records, missing), strict=True))
    for path, offsets in found.items():
        _check_count(path, len(offsets) - 1, sizes[path], states[path][1], int(offsets[-1]))
    # An incomplete index is not kept: the file may be mended, and keep its size and time.
    whole = {states[path]: x for path, x in found.items() if len(x) == sizes[path] + 1}
    if whole:
        _save(index, known | whole)
    return {path: found[path] if path in found else known[states[path]] for path in sizes}


def _check_count(path: str, count: int, expected: int, size: int, end: int) -> None:
    """Tells a file of another data set from one that was damaged, whose records are missing."""
    too_few = count < expected and (end == size or expected * MIN_RECORD_SIZE > size)
    if count > expected or too_few:
        raise OSError(
            f"{path} has {count:,} records, and dataset_info.json says {expected:,}: they do not "
            "belong together"
        )


def _state(path: str) -> _State:
    if is_remote(path):
        status = tf.io.gfile.stat(path)
        return epath.Path(path).name, status.length, status.mtime_nsec
    status = os.stat(path)
    return os.path.basename(path), status.st_size, status.st_mtime_ns


def _load(path: epath.Path) -> dict[_State, np.ndarray]:
    """Reads an index file; a missing or damaged one is empty."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            names, states, offsets = saved["names"], saved["states"], saved["offsets"]
        parts = np.split(offsets, np.cumsum(states[:, 2])[:-1])
        keys = [(str(name), int(s[0]), int(s[1])) for name, s in zip(names, states, strict=True)]
        return dict(zip(keys, parts, strict=True))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return {}


def _save(path: epath.Path, known: Mapping[_State, np.ndarray]) -> None:
    # One entry per file: the newest, which comes last.
    newest = {state[0]: state for state in known}
    offsets = [known[state] for state in newest.values()]
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                names=np.array(list(newest)),
                states=np.array(
                    [(*s[1:], len(x)) for s, x in zip(newest.values(), offsets, strict=True)]
                ),
                offsets=np.concatenate(offsets),
            )
    except (OSError, tf.errors.OpError) as error:
        logging.warning("%s cannot be written, so every start reads the files: %s", path, error)
