"""Preprocessing in worker processes, which share no interpreter lock.

Each worker makes whole batches, into shared memory. Batches do not depend on the number of workers:
order and augmentations are functions of the seed and the position. A worker has no epochs: it
makes the next step that is asked for. It starts as a new interpreter, which takes some seconds and
a few hundred megabytes.
"""

import collections
import contextlib
import dataclasses
import importlib
import json
import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from vmoe_prc.config import ConfigError
from vmoe_prc.config.files import import_modules
from vmoe_prc.config.registry import DATASETS, OPS
from vmoe_prc.data.jobs import Pool, ProcessDiedError
from vmoe_prc.data.ops.registry import PreprocessError, parse
from vmoe_prc.data.order import Rows
from vmoe_prc.data.preprocess import ALIGNMENT, CHUNK, Batch, Spec
from vmoe_prc.data.split import Split, open_split
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.cores import num_cores

# (positions, numbers, good, batch) of the rows of a batch.
Made = tuple[np.ndarray, np.ndarray, np.ndarray, Batch]


@dataclasses.dataclass(frozen=True)
class Task:
    """State of a worker process.

    Attributes:
      config: The section of `config.dataset`, as JSON.
      field: Name of the section.
      labels: Entry of the labels, see `open_split`.
      modules: Names of the modules that register the ops and the data set, with their files.
      seed: Seed of the augmentations.
      rows: The rows of this process.
    """

    config: str
    field: str
    labels: str
    modules: Sequence[tuple[str, str | None]]
    seed: int
    rows: Rows


class _Memory(SharedMemory):
    """Shared memory that may be deleted before the arrays in it, which keep it mapped."""

    def __del__(self) -> None:
        with contextlib.suppress(BufferError):
            super().__del__()


class _Memories:
    """Shared memory for the rows of a step, taken again when no array is in it any more.

    Args:
      spec: Shapes and dtypes of a row.
      rows: Number of rows.
    """

    def __init__(self, spec: Spec, rows: int):
        self._spec = spec
        self._size = sum(_size(x, rows) for x in spec.values())
        self._all: list[_Memory] = []
        self._free: collections.deque[_Memory] = collections.deque()

    def take(self) -> _Memory:
        """Returns memory that is in no use."""
        if self._free:
            return self._free.popleft()
        self._all.append(_Memory(create=True, size=self._size))
        return self._all[-1]

    def lend(self, memory: _Memory, count: int) -> Batch:
        """Returns the arrays in it, with `count` rows; when all are deleted it is free again."""
        whole = _bytes_of(memory)
        # JAX keeps a reference to an array until it has sent it, on CPU as long as it uses it.
        weakref.finalize(whole, self._free.append, memory).atexit = False
        return _arrays(whole, self._spec, count)

    def close(self) -> None:
        """Gives everything back to the system, once the arrays that are left are deleted."""
        for memory in self._all:
            memory.unlink()
        self._all.clear()
        self._free.clear()


class _Worker:
    """The state of a worker process."""

    def __init__(self, task: Task):
        for name, path in task.modules:
            _import(name, path)
        # The devices belong to the process that trains.
        jax.config.update("jax_platforms", "cpu")
        section = ml_collections.ConfigDict(json.loads(task.config))
        split = open_split(section, task.field, task.labels)
        self._records, self._preprocess = split.records, split.preprocess(task.seed)
        self._rows = task.rows
        self._memories: dict[str, SharedMemory] = {}

    def make(self, memory: str, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Makes the rows of a step in shared memory; returns (positions, numbers, good)."""
        if memory not in self._memories:
            self._memories[memory] = _attached(memory)
        positions, numbers = self._rows.chunk(step, self._rows.rows_per_step)
        whole = _bytes_of(self._memories[memory])
        arrays = _arrays(whole, self._preprocess.spec, len(positions))
        good = np.zeros(len(positions), np.bool_)
        for begin in range(0, len(positions), CHUNK):
            part = slice(begin, begin + CHUNK)
            records = self._records.read(numbers[part].tolist())
            good[part], rows = self._preprocess.rows(positions[part].tolist(), records)
            for key, array in arrays.items():
                array[part] = rows[key]
        return positions, numbers, good


_worker: _Worker | None = None


def _start(task: Task) -> None:
    global _worker
    _worker = _Worker(task)


def _make(job: tuple[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert _worker is not None, "the pool starts each worker by _start"
    return _worker.make(*job)


def _import(name: str, path: str | None) -> None:
    """Imports a module by its name, or a file that a configuration has imported by its path."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        if path is None:
            raise
        import_modules([path])


def _attached(name: str) -> SharedMemory:
    """Opens shared memory of the process that trains, which also deletes it."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    # Otherwise the end of this process would delete it, with a warning.
    resource_tracker.register = lambda name, rtype: None
    return SharedMemory(name)


def made_by_workers(split: Split, rows: Rows, seed: int, workers: int) -> Iterator[Made]:
    """Makes the rows of each step, from the first on.

    Args:
      split: The data.
      rows: The rows of this process.
      seed: Seed of the augmentations.
      workers: Number of worker processes; never more than two for each core.

    Raises:
      ConfigError: If the ops or the data set are of the script that was started.
      RunError: If a worker is killed.
    """
    labels = "labels" if "labels" in split.spec else "label"
    task = Task(split.config.to_json(), split.field, labels, _modules(split, workers), seed, rows)
    steps = _steps(rows)
    if workers > (most := 2 * num_cores()):
        logging.warning(
            "%s.workers = %d: %d for the cores of this host", split.field, workers, most
        )
        workers = most
    with contextlib.ExitStack() as stack:
        memories = _Memories(split.spec, rows.rows_per_step)
        stack.callback(memories.close)
        pool = stack.enter_context(contextlib.closing(Pool(workers, (_start, task))))
        pending: collections.deque[tuple[_Memory, Future[Any]]] = collections.deque()
        try:
            while True:
                # Two batches per worker: one that is being made, one that is finished.
                while len(pending) < 2 * workers and (step := next(steps, None)) is not None:
                    memory = memories.take()
                    pending.append((memory, pool.submit(_make, (memory.name, step))))
                if not pending:
                    return
                memory, future = pending.popleft()
                positions, numbers, good = future.result()
                yield positions, numbers, good, memories.lend(memory, len(positions))
        except PreprocessError as error:
            raise RunError(f"{split.name}: {split.field}.process: {error}") from error
        except ProcessDiedError as error:
            raise RunError(
                f"{split.name}: a worker process of the input pipeline has died (killed, or out of "
                f"memory): {error}; {split.field}.workers = {workers}"
            ) from error


def _modules(split: Split, workers: int) -> list[tuple[str, str | None]]:
    """Returns names and files of the modules that register the ops and the data set."""
    names = {OPS[name].__module__ for name, *_ in parse(split.config.process)}
    if split.config.name in DATASETS:
        names.add(DATASETS[split.config.name].__module__)
    if "__main__" in names:
        expected = (
            "workers cannot use ops and data sets of the script that was started: put them into "
            "a module that it imports"
        )
        raise ConfigError(f"{split.field}.workers", workers, expected)
    return [(name, getattr(sys.modules.get(name), "__file__", None)) for name in sorted(names)]


def _steps(rows: Rows) -> Iterator[int]:
    step = rows.start // rows.rows_per_step
    while rows.stop is None or step * rows.rows_per_step < rows.stop:
        yield step
        step += 1


def _bytes_of(memory: SharedMemory) -> np.ndarray:
    assert memory.buf is not None, "the memory is open"
    return np.frombuffer(memory.buf, np.uint8)


def _arrays(whole: np.ndarray, spec: Spec, count: int) -> Batch:
    """Returns arrays for rows of a batch, one after the other in an array of bytes."""
    arrays, offset = {}, 0
    for key, x in spec.items():
        shape = (count, *x.shape)
        end = offset + math.prod(shape) * np.dtype(x.dtype).itemsize
        arrays[key] = whole[offset:end].view(x.dtype).reshape(shape)
        offset += _size(x, count)
    return arrays


def _size(x: Any, count: int) -> int:
    size = count * math.prod(x.shape) * np.dtype(x.dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
