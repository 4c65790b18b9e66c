"""Loggers of metrics that a configuration may add: one module each, which registers itself.

    @LOGGERS.register(options=MyOptions)
    def my_logger(run: RunInfo, **options) -> MetricLogger: ...

Their packages are imported when a run starts with them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from vmoe_prc.arrays import UInt8


@runtime_checkable
class MetricLogger(Protocol):
    """Writes the metrics of one run; process 0 has one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step; there may be several calls for a step."""
        ...

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes a figure."""
        ...

    def close(self) -> None:
        """Writes what is pending."""
        ...


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The run that a logger is created for.

    Attributes:
      label: Label of the logger in `config.loggers`.
      workdir: Directory of the run.
      config: The completed configuration.
    """

    label: str
    workdir: epath.Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run for its reader."""
        return self.workdir.name

    @property
    def id_file(self) -> epath.Path:
        """File in which a logger keeps its identifier of the run, to continue it later."""
        return self.workdir / f"{self.label}-run.txt"
