"""Collects the parts of a page about runs, and writes it."""

import dataclasses
import pathlib
from collections.abc import Sequence

from vmoe_prc.report.embedding import Picture, embedded_file
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.page import Section, make_page, run_names
from vmoe_prc.report.page_routing import routing_sections
from vmoe_prc.report.runs import ReportError, Run
from vmoe_prc.workdir.atomic import atomic_write

# Figures that `vmoe_prc.analyze` saved in work directories. Without `pictures/`, which the page
# draws again, on the same images for all runs.
_SAVED_FIGURES = ("*.png", "specialisation_*/*.png")


def write_page(
    path: str | pathlib.Path, experiments: Sequence[Experiment], warnings: Sequence[str]
) -> list[str]:
    """Writes the page; a page that cannot be finished leaves no file.

    Args:
      path: The file to write.
      experiments: See `make_page`.
      warnings: Warnings to show, such as of runs that were left out.

    Returns:
      These warnings, and warnings about figures that could not be made.

    Raises:
      ReportError: If the file is a directory.
      OSError: If it cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ReportError(f"{path}: is a directory; expected a file to write")
    with atomic_write(path) as temporary:
        temporary.touch()  # fails early where the file cannot be written
        sections, further = _sections(experiments)
        warnings = [*warnings, *further]
        temporary.write_text(make_page(experiments, sections, warnings), encoding="utf-8")
    return warnings


def saved_section(runs: Sequence[Run]) -> tuple[Section, list[str]]:
    """Shows the figures that `vmoe_prc.analyze` saved for each run.

    Args:
      runs: The runs of the page.

    Returns:
      The section, and a warning for each file that cannot be shown.
    """
    pictures: list[Picture] = []
    warnings = []
    for name, run in zip(run_names(runs), runs, strict=True):
        folder = pathlib.Path(run.workdir) / "analysis"
        for path in sorted(path for pattern in _SAVED_FIGURES for path in folder.glob(pattern)):
            try:
                pictures.append(embedded_file(path, f"{name}: {path.relative_to(folder)}"))
            except (OSError, ValueError) as error:
                warnings.append(f"left out: {path}: {error}")
    text = "Figures that python -m vmoe_prc.analyze saved in the work directories."
    return Section("saved", "Saved analyses", text, pictures=pictures), warnings


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
