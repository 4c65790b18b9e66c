"""Gathers a page about runs and writes it."""

import dataclasses
import pathlib
from collections.abc import Sequence

from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.page import Section, make_page
from vmoe_prc.report.page_routing import routing_sections
from vmoe_prc.report.runs import ReportError
from vmoe_prc.report.saved import saved_section
from vmoe_prc.workdir.atomic import atomic_write


def write_page(
    path: str | pathlib.Path, experiments: Sequence[Experiment], warnings: Sequence[str]
) -> list[str]:
    """Writes the page, whole or not at all.

    Args:
      path: The file to write.
      experiments: See `make_page`.
      warnings: What to tell the reader of runs that were left out.

    Returns:
      These warnings, and those of pictures that could not be made.

    Raises:
      ReportError: If the file is a directory.
      OSError: If it cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ReportError(f"{path}: is a directory; expected a file to write")
    with atomic_write(path) as temporary:
        temporary.touch()  # a place that cannot be written to is found at once
        sections, further = _sections(experiments)
        warnings = [*warnings, *further]
        temporary.write_text(make_page(experiments, sections, warnings))
    return warnings


def _sections(experiments: Sequence[Experiment]) -> tuple[list[Section], list[str]]:
    sections, warnings = [], []
    datasets = list(dict.fromkeys(e.dataset for e in experiments))
    for i, dataset in enumerate(datasets):
        parts, failed = routing_sections([e for e in experiments if e.dataset == dataset])
        warnings += failed
        if len(datasets) > 1:
            parts = [
                dataclasses.replace(p, anchor=f"{p.anchor}-{i}", title=f"{p.title}, {dataset}")
                for p in parts
            ]
        sections += parts
    saved, failed = saved_section([run for e in experiments for run in e.runs])
    return [*sections, saved], warnings + failed
