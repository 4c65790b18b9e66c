"""One HTML page about several runs, which needs nothing but itself."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence

import jinja2

from vmoe_prc.report.config_diff import config_differences
from vmoe_prc.report.curves import CURVES, Style, available_curves, learning_curve, line_styles
from vmoe_prc.report.embedding import Picture, drawing
from vmoe_prc.report.experiments import METHODS, Experiment
from vmoe_prc.report.formats import table_cells
from vmoe_prc.report.paired import DifferenceTable, compare, difference_table
from vmoe_prc.report.runs import Run
from vmoe_prc.report.tables import Table, make_tables

BASELINE = METHODS[None]


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table as text.

    Attributes:
      title: What it shows.
      header: Titles of the columns.
      rows: The cells of each row.
      first_number: The column from which on there are figures.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    first_number: int


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      anchor: Its name in links.
      title: Its title.
      text: A paragraph that explains it.
      tables: Its tables.
      legend: Styles of the lines in its pictures, and what they are.
      pictures: Its pictures.
    """

    anchor: str
    title: str
    text: str = ""
    tables: Sequence[PageTable] = ()
    legend: Sequence[tuple[Style, str]] = ()
    pictures: Sequence[Picture] = ()


def make_page(
    experiments: Sequence[Experiment],
    sections: Sequence[Section] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Makes the page: tables, learning curves, the given sections, configurations.

    Args:
      experiments: What the runs are about, in order.
      sections: Further parts.
      warnings: What the reader should know of runs that are missing.

    Returns:
      HTML; every text in it is escaped.
    """
    runs = [run for experiment in experiments for run in experiment.runs]
    names = run_names(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vmoe_prc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    parts = [_results(experiments), *_learning(experiments), *sections]
    return environment.get_template("page.html.j2").render(
        title=_title(runs),
        summary=_summary(experiments),
        warnings=warnings,
        sections=[part for part in parts if part.tables or part.pictures],
        differences=config_differences(runs),
        runs=[
            {"name": name, "config": json.dumps(run.config, indent=2)}
            for name, run in zip(names, runs, strict=True)
        ],
    )


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names runs by their work directories, from the deepest that holds them all."""
    if len(runs) == 1:
        return [runs[0].workdir.name]
    parent = _parent(runs)
    return [str(run.workdir.relative_to(parent)) for run in runs]


def _parent(runs: Sequence[Run]) -> pathlib.Path:
    return pathlib.Path(os.path.commonpath([run.workdir for run in runs]))


def _title(runs: Sequence[Run]) -> str:
    return f"{_parent(runs).name or 'All'}: routing and accuracy"


def _summary(experiments: Sequence[Experiment]) -> str:
    runs = sum(len(experiment.runs) for experiment in experiments)
    arms = "; ".join(dict.fromkeys(e.label for e in experiments))
    counted = f"{runs} finished run" + "s" * (runs > 1)
    return f"{counted}: {arms}."


def _results(experiments: Sequence[Experiment]) -> Section:
    text = (
        "Shares in %, at the end of training: mean ± sample standard deviation over seeds. "
        "Published figures are those of Kada et al., IEEE OJSP 2025, for V-MoE-S/32 with 8 experts."
    )
    tables: list[Table | DifferenceTable] = [*make_tables(experiments)]
    differences = difference_table(
        [
            compare(arm, baseline)
            for baseline in experiments
            for arm in experiments
            if baseline.method == BASELINE != arm.method
            and (arm.dataset, arm.k) == (baseline.dataset, baseline.k)
        ]
    )
    if differences.rows:
        tables.append(differences)
    return Section("results", "Results", text, [_page_table(table) for table in tables])


def _page_table(table: Table | DifferenceTable) -> PageTable:
    header, *rows = table_cells(table)
    return PageTable(table.title, header, rows, len(header) - len(table.columns))


def _learning(experiments: Sequence[Experiment]) -> list[Section]:
    """A section for each data set."""
    datasets = list(dict.fromkeys(e.dataset for e in experiments))
    sections = []
    for dataset in datasets:
        arms = [e for e in experiments if e.dataset == dataset]
        title = "Learning curves" + (f", {dataset}" if len(datasets) > 1 else "")
        labels = [_with_seeds(arm) for arm in arms]
        pictures = [
            drawing(
                functools.partial(learning_curve, arms, name),
                f"{CURVES[name][0]} of {', '.join(labels)} by step, on {dataset}.",
            )
            for name in available_curves(arms)
        ]
        legend = list(zip(line_styles(len(arms)), labels, strict=True))
        anchor = f"learning-{len(sections)}"
        sections.append(Section(anchor, title, legend=legend, pictures=pictures))
    return sections


def _with_seeds(experiment: Experiment) -> str:
    count = len(experiment.runs)
    return experiment.label + (f" ({count} seeds, a line each)" if count > 1 else "")
