"""Reads what finished runs left in their work directories."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmoe_prc.workdir.layout import CONFIG_FILE, SUMMARY_FILE
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics


class ReportError(ValueError):
    """Work directories that give no report; the text names the directory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      workdir: Its work directory.
      config: Its configuration.
      metrics: The metrics of its last evaluation, such as 'test/accuracy'; shares in [0, 1].
      records: The metrics of every step that has any, see `metrics.read_metrics`.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    records: Sequence[Mapping[str, float]]


def find_runs(directories: Iterable[str | pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs in directories and below them.

    Args:
      directories: Work directories, or directories of work directories.

    Returns:
      The finished runs by their paths, and a warning for each run that is left out.

    Raises:
      ReportError: If a directory is missing, or there is no finished run in it.
    """
    runs, warnings = {}, []
    for directory in map(pathlib.Path, directories):
        if not directory.is_dir():
            raise ReportError(f"{directory}: no such directory")
        found = {path.parent.resolve() for path in directory.rglob(CONFIG_FILE)}
        for workdir in sorted(found - runs.keys()):
            try:
                runs[workdir] = read_run(workdir)
            except ReportError as error:
                warnings.append(f"left out: {error}")
        if not found & runs.keys():
            raise ReportError("; ".join([f"{directory}: no finished run", *warnings]))
    return [runs[workdir] for workdir in sorted(runs)], warnings


def read_run(workdir: pathlib.Path) -> Run:
    """Reads a finished run.

    Raises:
      ReportError: If it has not ended, or its files cannot be read.
    """
    if not (workdir / SUMMARY_FILE).exists():
        raise ReportError(f"{workdir}: has not ended; the same command resumes it")
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text())
        records = read_metrics(workdir / METRICS_FILE)
    except (OSError, ValueError) as error:
        raise ReportError(f"{workdir}: cannot be read: {error}") from None
    evaluated = [r for r in records if any(name.endswith("/accuracy") for name in _evaluated(r))]
    if not evaluated:
        raise ReportError(f"{workdir}: has no evaluation")
    return Run(workdir, config, evaluated[-1], records)


def _evaluated(record: Mapping[str, float]) -> Sequence[str]:
    return [name for name in record if not name.startswith("train/")]
