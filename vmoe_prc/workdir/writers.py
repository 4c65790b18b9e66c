"""Writers of metrics, to TensorBoard and to `metrics.jsonl`."""

import collections
import concurrent.futures
import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf
from etils import epath

from vmoe_prc.workdir.layout import TENSORBOARD_FOLDER
from vmoe_prc.workdir.loggers import MetricLogger
from vmoe_prc.workdir.metrics import METRICS_FILE, truncate_metrics


class WriteError(Exception):
    """A writer has failed in its thread; the cause is in `__cause__`."""


# What a writer of `create_writer` raises where it cannot write.
WRITE_ERRORS = (OSError, tf.errors.OpError, WriteError)


@runtime_checkable
class MetricWriter(Protocol):
    """Writes the metrics of one run."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes NumPy, JAX or Python scalars."""
        ...

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes figures, each (N, H, W, 3) uint8."""
        ...

    def flush(self) -> None:
        """Writes what is pending."""
        ...

    def close(self) -> None:
        """Writes what is pending; no other call follows."""
        ...


def create_writer(
    workdir: str | PathLike[str], *, process_index: int = 0, loggers: Sequence[MetricLogger] = ()
) -> MetricWriter:
    """Creates the writer to TensorBoard and to `metrics.jsonl` in `workdir`, and to loggers.

    Writing happens in separate threads: the training loop waits for neither the disk
    nor the values of JAX arrays. An error there is raised by a later call. `flush` waits
    until all is written; call it before a checkpoint is saved, and `close` at the end.

    Args:
      workdir: Folder of the run, created if missing; `gs://` works as well.
      process_index: `jax.process_index()`; all but process 0 get a writer that does
        nothing.
      loggers: Loggers to write to as well.
    """
    if process_index != 0:
        return BackgroundWriter([])
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return BackgroundWriter(
        [
            _TensorBoardWriter(workdir / TENSORBOARD_FOLDER),
            JsonlWriter(workdir / METRICS_FILE),
            *map(_LoggerWriter, loggers),
        ]
    )


class BackgroundWriter:
    """Calls writers in threads, one for each of them.

    A call that fails is raised by a later one as `WriteError`.

    Args:
      writers: The writers.
    """

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = [
            (writer, ThreadPoolExecutor(1, type(writer).__name__)) for writer in writers
        ]
        self._pending: collections.deque[Future[None]] = collections.deque()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes NumPy, JAX or Python scalars, which need not be computed yet."""
        self._call("write_scalars", step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes figures, each (N, H, W, 3) uint8."""
        self._call("write_images", step, images)

    def flush(self) -> None:
        """Waits until all is written."""
        self._call("flush")
        concurrent.futures.wait(self._pending)
        self._raise_errors()

    def close(self) -> None:
        """Waits until all is written, and ends the threads."""
        with contextlib.ExitStack() as stack:
            for writer, thread in self._writers:
                stack.callback(thread.shutdown)
                stack.callback(writer.close)
            self.flush()

    def _call(self, method: str, *arguments: Any) -> None:
        self._raise_errors()
        for writer, thread in self._writers:
            self._pending.append(thread.submit(getattr(writer, method), *arguments))

    def _raise_errors(self) -> None:
        while self._pending and self._pending[0].done():
            if error := self._pending.popleft().exception():
                raise WriteError(str(error)) from error


class _TensorBoardWriter:
    """Writes scalars and images for TensorBoard."""

    def __init__(self, directory: epath.Path):
        self._writer = tf.summary.create_file_writer(str(directory))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        with self._writer.as_default():
            for name, value in scalars.items():
                tf.summary.scalar(name, value, step=step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        with self._writer.as_default():
            for name, batch in images.items():
                tf.summary.image(name, batch, step=step, max_outputs=len(batch))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _LoggerWriter:
    """Writes scalars and images to a logger."""

    def __init__(self, logger: MetricLogger):
        self._logger = logger

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._logger.scalars(int(step), {name: float(x) for name, x in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, batch in images.items():
            for pixels in batch:
                self._logger.image(int(step), name, pixels)

    def flush(self) -> None:
        """Does nothing: loggers send in the background."""

    def close(self) -> None:
        self._logger.close()


class JsonlWriter:
    """Appends the scalars of each step as one line of JSON; see `vmoe_prc.workdir.metrics`.

    What is written for the same step in several calls is gathered in one line, which is
    therefore written when the next step begins, or by `flush` or `close`. Images and all
    else that is not a scalar is left to TensorBoard.

    Args:
      path: The file; appended to if it exists, after repair of a torn last line.
    """

    def __init__(self, path: str | PathLike[str]):
        self._path = epath.Path(path)
        self._record: dict[str, Any] = {}
        truncate_metrics(self._path, math.inf)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes NumPy, JAX or Python scalars; a later value of a metric replaces it.

        Raises:
          ValueError: If a value is not a scalar.
        """
        values = {name: _to_json(name, value) for name, value in scalars.items()}
        step = int(step)
        if self._record and self._record["step"] != step:
            self.flush()
        self._record |= {"step": step, "time": round(time.time(), 3), **values}

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Writes out the line of the current step."""
        if not self._record:
            return
        line = json.dumps(self._record, allow_nan=False) + "\n"
        with self._path.open("a") as file:
            file.write(line)
        self._record = {}

    def close(self) -> None:
        """Writes out the last line."""
        self.flush()


def _to_json(name: str, value: Any) -> bool | int | float | str:
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"metric {name!r} must be a scalar, but has shape {array.shape}")
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array.reshape(()))
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number
