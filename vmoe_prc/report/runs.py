"""Reads what finished runs left in their work directories."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_prc.config.metric_names import TRAIN, parse_name, parse_names
from vmoe_prc.errors import UserError
from vmoe_prc.workdir.history import Stretch, read_config, read_data, read_history
from vmoe_prc.workdir.layout import CONFIG_FILE, SUMMARY_FILE
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics

# Fields that every report reads.
_NEEDED = ("seed", "consistency", "dataset.train.name", "model.encoder.moe.layers")


class ReportError(UserError, ValueError):
    """Work directories that give no report; the text names the directory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: Its work directory.
      config: Its configuration.
      metrics: The metrics of its last evaluation, such as 'test/accuracy'; shares in [0, 1].
      records: The metrics of each step that logged any, see `workdir.metrics.read_metrics`.
      data: Descriptions of its splits with their digests, see `workdir.history.read_data`;
        empty for runs of a version that kept none.
      history: The configurations of its steps in order, see `workdir.history.read_history`.
    """

    workdir: pathlib.Path | epath.Path
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    records: Sequence[Mapping[str, float]]
    data: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    history: Sequence[Stretch] = ()

    @property
    def diverged(self) -> bool:
        """Whether a loss of the last evaluation is not finite.

        The other metrics mean nothing then: gates that are NaN choose the same experts for
        all tokens, which looks like perfect agreement.
        """
        metrics = parse_names(self.metrics)
        losses = [value for name, value in metrics.items() if name.measure == "loss"]
        return not all(map(math.isfinite, losses))


def find_runs(directories: Iterable[str | pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs in directories and below them.

    Args:
      directories: Work directories, or directories of work directories.

    Returns:
      The finished runs by their paths, and a warning for each run that is left out and for
      each directory without a finished run.

    Raises:
      ReportError: If a directory is missing, or no directory has a finished run.
    """
    runs, warnings, empty = {}, [], []
    for directory in (pathlib.Path(path).expanduser() for path in directories):
        if not directory.is_dir():
            raise ReportError(f"{directory}: no such directory")
        found = {path.parent.resolve() for path in directory.rglob(CONFIG_FILE)}
        for workdir in sorted(found - runs.keys()):
            try:
                runs[workdir] = read_run(workdir)
            except ReportError as error:
                warnings.append(f"left out: {error}")
        if not found & runs.keys():
            empty.append(f"{directory}: no finished run")
    if not runs:
        raise ReportError("; ".join([*empty, *warnings]))
    return [runs[workdir] for workdir in sorted(runs)], [*empty, *warnings]


def read_run(workdir: pathlib.Path | epath.Path) -> Run:
    """Reads a finished run.

    Raises:
      ReportError: If the run has not finished, or its files cannot be read.
    """
    if not (workdir / SUMMARY_FILE).exists():
        raise ReportError(f"{workdir}: not finished; run its command again to resume it")
    try:
        folder = epath.Path(workdir)
        config, data, history = read_config(folder), read_data(folder), read_history(folder)
        records = [_numbers(record) for record in read_metrics(workdir / METRICS_FILE)]
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ReportError(f"{workdir}: cannot be read: {reason}") from None
    for field in _NEEDED:
        if not _has_field(config, field):
            raise ReportError(f"{workdir}: {CONFIG_FILE} lacks the field {field}")
    evaluated = [record for record in records if _is_evaluation(record)]
    if not evaluated:
        raise ReportError(f"{workdir}: has no evaluation")
    return Run(workdir, config, evaluated[-1], records, data, history)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in record.items() if isinstance(v, int | float)}


def _has_field(config: Any, field: str) -> bool:
    for name in field.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return False
        config = config[name]
    return True


def _is_evaluation(record: Mapping[str, float]) -> bool:
    names = map(parse_name, record)
    return any(name.measure == "accuracy" and name.group not in (None, TRAIN) for name in names)
