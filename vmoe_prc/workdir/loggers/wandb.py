"""Metrics and figures to Weights & Biases; `WANDB_MODE=offline` keeps them in the directory."""

import dataclasses
import importlib
import uuid
from collections.abc import Mapping

import numpy as np

from vmoe_prc.arrays import UInt8
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import LOGGERS
from vmoe_prc.workdir.loggers import RunInfo


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """Options of the logger; all else is set by wandb's environment variables."""

    project: str = option("vmoe_prc", "Project of Weights & Biases.")
    entity: str | None = option(None, "User or team; None for the default one.")


@LOGGERS.register("wandb", options=WandbOptions)
class WandbLogger:
    """Writes to a run of Weights & Biases; a run that is resumed here is resumed there.

    Args:
      run: The run.
      project: Project of Weights & Biases.
      entity: User or team; None for the default one.
    """

    def __init__(self, run: RunInfo, *, project: str, entity: str | None):
        wandb = importlib.import_module("wandb")  # An extra.
        self._wandb = wandb
        if not run.id_file.exists():
            run.id_file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            entity=entity,
            id=run.id_file.read_text(),
            resume="allow",
            name=run.name,
            dir=str(run.workdir),
            config=dict(run.config),
            notes=run.config["description"],
            settings=wandb.Settings(silent=True),
        )
        # Not wandb's own step, which cannot go back to the step of a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes a figure."""
        self._run.log({"step": step, name: self._wandb.Image(pixels)})

    def close(self) -> None:
        """Waits until all is written."""
        self._run.finish()
