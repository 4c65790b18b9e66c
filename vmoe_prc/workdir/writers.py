"""Writers of metrics, to TensorBoard and to `metrics.jsonl`; clu imports TensorFlow."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import tensorflow as tf
from clu import asynclib, metric_writers
from etils import epath

from vmoe_prc.workdir.layout import TENSORBOARD_FOLDER
from vmoe_prc.workdir.loggers import MetricLogger
from vmoe_prc.workdir.metrics import METRICS_FILE, truncate_metrics

# Errors of a writer of `create_writer` that cannot write; the cause is in `__cause__`.
WRITE_ERRORS = (OSError, tf.errors.OpError, asynclib.AsyncError)


def create_writer(
    workdir: str | PathLike[str], *, process_index: int = 0, loggers: Sequence[MetricLogger] = ()
) -> metric_writers.MetricWriter:
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
        return metric_writers.MultiWriter([])
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return metric_writers.AsyncMultiWriter(
        [
            metric_writers.SummaryWriter(str(workdir / TENSORBOARD_FOLDER)),
            JsonlWriter(workdir / METRICS_FILE),
            *map(_LoggerWriter, loggers),
        ]
    )


class _ScalarWriter(metric_writers.MetricWriter):
    """A writer that leaves all but scalars to others."""

    def write_summaries(self, step, values, metadata=None) -> None:
        """Does nothing."""

    def write_images(self, step, images) -> None:
        """Does nothing."""

    def write_videos(self, step, videos) -> None:
        """Does nothing."""

    def write_audios(self, step, audios, *, sample_rate) -> None:
        """Does nothing."""

    def write_texts(self, step, texts) -> None:
        """Does nothing."""

    def write_histograms(self, step, arrays, num_buckets=None) -> None:
        """Does nothing."""

    def write_hparams(self, hparams) -> None:
        """Does nothing."""


class _LoggerWriter(_ScalarWriter):
    """Writes scalars and images to a logger."""

    def __init__(self, logger: MetricLogger):
        self._logger = logger

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._logger.scalars(int(step), {name: float(x) for name, x in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, batch in images.items():
            for pixels in np.asarray(batch):
                self._logger.image(int(step), name, pixels)

    def flush(self) -> None:
        """Does nothing: loggers send in the background."""

    def close(self) -> None:
        self._logger.close()


class JsonlWriter(_ScalarWriter):
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
