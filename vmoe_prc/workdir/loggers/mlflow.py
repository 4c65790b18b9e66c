"""Metrics and figures to MLflow, at `MLFLOW_TRACKING_URI`: a server or a local store."""

import dataclasses
import importlib
import time
from collections.abc import Mapping

import numpy as np

from vmoe_prc.arrays import UInt8
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import LOGGERS
from vmoe_prc.workdir.loggers import RunInfo

# MLflow takes no more metrics in a request.
_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlflowOptions:
    """Options of the logger; all else is set by MLflow's environment variables."""

    experiment: str = option("vmoe_prc", "Experiment of MLflow; made if there is none.")


@LOGGERS.register("mlflow", options=MlflowOptions)
class MlflowLogger:
    """Writes to a run of MLflow; a run that is resumed here is resumed there.

    Args:
      run: The run.
      experiment: Experiment of MLflow; made if there is none.
    """

    def __init__(self, run: RunInfo, *, experiment: str):
        mlflow = importlib.import_module("mlflow")  # An extra.
        self._metric = mlflow.entities.Metric
        self._client = client = mlflow.MlflowClient()
        if not run.id_file.exists():
            found = client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else client.create_experiment(experiment)
            created = client.create_run(number, run_name=run.name)
            run.id_file.write_text(created.info.run_id)
        self._id = run.id_file.read_text()
        client.update_run(self._id, status="RUNNING")
        client.log_dict(self._id, dict(run.config), "config.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MOST])

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes a figure."""
        self._client.log_image(self._id, pixels, artifact_file=f"{name}/{step}.png")

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._id)
