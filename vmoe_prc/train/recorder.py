"""Writes what a run measures: to `metrics.jsonl`, TensorBoard, figures and the log."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from vmoe_prc.arrays import Array
from vmoe_prc.config.metric_names import SPEED, TRAIN, MetricName, parse_name, under
from vmoe_prc.config.registry import LOGGERS
from vmoe_prc.evaluation.evaluator import Result
from vmoe_prc.figures.panels import figure_pixels, save_figure
from vmoe_prc.runtime.processes import (
    broadcast_from_process_zero,
    is_main_process,
    raise_everywhere,
)
from vmoe_prc.train.program import Program
from vmoe_prc.workdir.history import record_config, record_data
from vmoe_prc.workdir.layout import SUMMARY_FILE, TENSORBOARD_FOLDER, figure_file
from vmoe_prc.workdir.loggers import MetricLogger, RunInfo
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics, truncate_metrics
from vmoe_prc.workdir.writers import create_writer


class Recorder:
    """The records of one run; a context manager, which writes all that is pending at its end.

    Args:
      program: The program.
      workdir: Directory of the run.
      step: Step that the run starts from. Records of later steps are removed: the run that
        wrote them did not get to save a checkpoint.

    Attributes:
      start_is_evaluated: Whether there are results of an evaluation after that step.

    Raises:
      ConfigError: If files of an earlier start are damaged, or the package of a logger is not
        installed.
    """

    def __init__(self, program: Program, workdir: epath.Path, step: int):
        self._program, self._workdir = program, workdir
        self._learning_rate = jax.jit(program.schedule)
        evaluated = False
        with raise_everywhere():
            if is_main_process():
                record_config(program.config.to_dict(), workdir, step)
                record_data(program.data, workdir)
                truncate_metrics(workdir / METRICS_FILE, step)
                (workdir / SUMMARY_FILE).unlink(missing_ok=True)
                evaluated = _is_evaluated(workdir / METRICS_FILE, step)
        self.start_is_evaluated = broadcast_from_process_zero(str(evaluated)) == str(True)
        self._writer = create_writer(
            workdir,
            process_index=jax.process_index(),
            loggers=_create_loggers(program.config, workdir),
        )
        self._figures: dict[str, epath.Path] = {}

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *unused: Any) -> None:
        self._writer.close()

    def training(self, step: int, metrics: Mapping[str, Array], rates: Mapping[str, float]) -> None:
        """Records the metrics of a training step, and how fast steps are."""
        scalars: dict[str, Any] = dict(metrics)
        # The schedule counts from 0: update n used the rate schedule(n - 1).
        updates = step - int(metrics["skipped_steps"])
        rate = self._learning_rate(max(updates - 1, 0))
        scalars["learning_rate"] = float(np.asarray(rate))
        self._writer.write_scalars(step, under(TRAIN, scalars) | under(SPEED, rates))

    def evaluation(self, step: int, results: Mapping[str, Result]) -> dict[str, float]:
        """Records the results of evaluators, and returns their metrics."""
        metrics = {name: float(x) for name, x in results.items() if not callable(x)}
        self._writer.write_scalars(step, metrics)
        if is_main_process():
            for name, draw in results.items():
                if callable(draw):
                    self._draw(step, name, draw())
        shown = [
            f"{name} {value:.4f}"
            for name, value in metrics.items()
            if _is_headline(parse_name(name))
        ]
        if shown:
            logging.info("evaluation at step %d: %s", step, ", ".join(shown))
        return metrics

    def flush(self) -> None:
        """Waits until all records are written."""
        self._writer.flush()

    @property
    def paths(self) -> dict[str, epath.Path]:
        """Files of the records, by names for the user."""
        return {
            "TensorBoard": self._workdir / TENSORBOARD_FOLDER,
            "metrics": self._workdir / METRICS_FILE,
            **self._figures,
        }

    def _draw(self, step: int, name: str, figure: Any) -> None:
        path = self._workdir / figure_file(name)
        save_figure(figure, path)
        self._figures["picture" if name == "routing" else name] = path
        self._writer.write_images(step, {name: figure_pixels(figure)[None]})


def _is_evaluated(path: epath.Path, step: int) -> bool:
    """Whether the metrics of a step have results of evaluators."""
    if not path.exists():
        return False
    names = [name for record in read_metrics(path) if record["step"] == step for name in record]
    return any(parse_name(name).group not in (None, TRAIN, SPEED) for name in names)


def _is_headline(name: MetricName) -> bool:
    """Whether a metric is logged after an evaluation: the main ones, over all blocks."""
    return name.measure in ("accuracy", "top1", "shot") and name.block is None and not name.bound


def _create_loggers(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[MetricLogger]:
    """Starts the loggers of `config.loggers` in process 0; the others have none."""
    loggers: list[MetricLogger] = []
    with raise_everywhere():
        if is_main_process():
            for label, section in config.loggers.items():
                options = section.to_dict()
                create = LOGGERS[options.pop("name")]
                loggers.append(create(RunInfo(label, workdir, config.to_dict()), **options))
    return loggers
