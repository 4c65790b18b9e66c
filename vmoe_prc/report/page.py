"""One self-contained HTML page about several runs."""

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from vmoe_prc.figures.agreement_bars import agreement_figure
from vmoe_prc.figures.interactive import SCRIPT, STYLE, read_asset
from vmoe_prc.figures.palette import LineStyle, line_styles
from vmoe_prc.report.config_diff import differing_fields, value_text
from vmoe_prc.report.embedding import Picture, drawing
from vmoe_prc.report.experiments import BASELINE, Experiment
from vmoe_prc.report.figures import (
    CURVES,
    agreement_bars,
    available_curves,
    learning_curve,
)
from vmoe_prc.report.formats import table_cells
from vmoe_prc.report.paired import MIN_SEEDS, DifferenceTable, compare, difference_table
from vmoe_prc.report.runs import Run
from vmoe_prc.report.tables import PUBLISHED, SAMPLING_ERROR, Table, make_tables

# Bytes of all pictures and maps of a page, and runs of which it shows the whole configuration:
# browsers are slow to open pages of several times this size.
MAX_BYTES = 24_000_000
MAX_CONFIGURATIONS = 100

_AGREEMENT = (
    "Agreement of the first experts of matched patches. Chance is what the loads of the experts "
    "give. Image is what re-pairing the patches within each image keeps: a router that sends "
    "whole images to one expert has no more. Place is the rest. Kappa and kappa place are the "
    "agreement corrected for chance, and for chance and image: 0 for none, 100 for all."
)


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table as text.

    Attributes:
      title: Its title.
      header: Titles of the columns.
      rows: The cells of each row.
      first_number: The first column of numbers.
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
      legend: Styles of the lines in its pictures, and their labels.
      pictures: Its pictures.
      explorers: Data of `explorer.js`, see `explorer.explorer_data`.
    """

    anchor: str
    title: str
    text: str = ""
    tables: Sequence[PageTable] = ()
    legend: Sequence[tuple[LineStyle, str]] = ()
    pictures: Sequence[Picture] = ()
    explorers: Sequence[Mapping[str, Any]] = ()


def make_page(
    experiments: Sequence[Experiment],
    sections: Sequence[Section] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Makes the page: tables, learning curves, the given sections, configurations.

    Args:
      experiments: The experiments, in order.
      sections: Further parts.
      warnings: Warnings to show, such as of runs that are missing.

    Returns:
      HTML; every text in it is escaped.
    """
    runs = [run for experiment in experiments for run in experiment.runs]
    names = run_names(runs)
    explorer = resources.files("vmoe_prc.report") / "explorer.js"
    script = read_asset(SCRIPT) + explorer.read_text()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vmoe_prc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    parts = [
        _results(experiments),
        *_agreement(experiments),
        *_learning(experiments),
        *sections,
    ]
    parts, left_out = bounded(parts)
    if len(runs) > MAX_CONFIGURATIONS:
        left_out.append(
            f"Whole configurations are shown of {MAX_CONFIGURATIONS} of {len(runs)} runs."
        )
    return environment.get_template("page.html.j2").render(
        title=_title(runs),
        summary=_summary(experiments),
        warnings=[*warnings, *left_out],
        sections=[part for part in parts if part.tables or part.pictures or part.explorers],
        style=read_asset(STYLE),
        script=script,
        # Only this script runs, even if a name holds another.
        script_hash=_hash(script),
        differences={
            field: [value_text(value) for value in values]
            for field, values in differing_fields([run.config for run in runs]).items()
        },
        names=names,
        runs=[
            {"name": name, "config": json.dumps(run.config, indent=2)}
            for name, run in itertools.islice(zip(names, runs, strict=True), MAX_CONFIGURATIONS)
        ],
    )


def bounded(
    sections: Sequence[Section], max_bytes: int = MAX_BYTES
) -> tuple[list[Section], list[str]]:
    """Leaves out the last pictures of a page that would be too large.

    Args:
      sections: Parts of the page, in order.
      max_bytes: Bytes of pictures and of the data of maps, at most. Maps come first.

    Returns:
      The sections with the pictures that fit, and a line for each section that has fewer.
    """
    left = max_bytes - sum(len(json.dumps(x)) for part in sections for x in part.explorers)
    kept, lines = [], []
    for part in sections:
        pictures = []
        for picture in part.pictures:
            left -= len(picture.source) + len(picture.dark_source or "")
            if left < 0:
                break
            pictures.append(picture)
        if missing := len(part.pictures) - len(pictures):
            lines.append(
                f"{part.title}: {missing} of {len(part.pictures)} pictures are left out, so that "
                f"the page has at most {max_bytes / 1e6:g} MB of them; report fewer runs to see "
                "them."
            )
        kept.append(dataclasses.replace(part, pictures=pictures))
    return kept, lines


def _hash(script: str) -> str:
    """Returns the source expression that allows an inline script (Content Security Policy)."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names runs by their work directories, relative to the deepest common parent."""
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
    labels = "; ".join(dict.fromkeys(e.label for e in experiments))
    return f"{runs} finished run{'s' * (runs > 1)}: {labels}."


def _results(experiments: Sequence[Experiment]) -> Section:
    tables: list[Table | DifferenceTable] = [*make_tables(experiments)]
    differences = difference_table(
        [
            compare(experiment, baseline)
            for baseline in experiments
            for experiment in experiments
            if baseline.method == BASELINE != experiment.method
            and (experiment.dataset, experiment.k) == (baseline.dataset, baseline.k)
        ]
    )
    if differences.rows:
        tables.append(differences)
    text = _results_text(tables)
    return Section("results", "Results", text, [_page_table(table) for table in tables])


def _results_text(tables: Sequence[Table | DifferenceTable]) -> str:
    """Explains the columns that the tables have."""
    columns = {column for table in tables for column in table.columns}
    sentences = [
        "Shares in %, at the end of training: mean ± sample standard deviation over seeds."
    ]
    if SAMPLING_ERROR in columns:
        sentences.append(
            "The sampling error is the standard error of an accuracy that comes from the choice "
            "of test images; more seeds do not reduce it."
        )
    if any(isinstance(table, DifferenceTable) for table in tables):
        sentences.append(f"Differences have an interval from {MIN_SEEDS} seeds on.")
    if any(column.endswith(PUBLISHED) for column in columns):
        sentences.append(
            "Published values are from Kada et al., IEEE OJSP 2025, for V-MoE-S/32 with 8 experts."
        )
    return " ".join(sentences)


def _page_table(table: Table | DifferenceTable) -> PageTable:
    header, *rows = table_cells(table)
    first = header.index("seeds") + 1
    return PageTable(table.title, header, rows, first)


def _agreement(experiments: Sequence[Experiment]) -> list[Section]:
    """Returns one section per data set whose runs logged the parts of agreement."""
    datasets = list(dict.fromkeys(e.dataset for e in experiments))
    sections = []
    for dataset in datasets:
        bars = agreement_bars([e for e in experiments if e.dataset == dataset])
        if not bars:
            continue
        title = "Agreement in parts" + (f", {dataset}" if len(datasets) > 1 else "")
        labels = ", ".join(bar.label for bar in bars)
        picture = drawing(
            functools.partial(agreement_figure, bars),
            f"Agreement of {labels} by chance, by image and by place, on {dataset}.",
        )
        anchor = f"agreement-{len(sections)}"
        sections.append(Section(anchor, title, _AGREEMENT, pictures=[picture]))
    return sections


def _learning(experiments: Sequence[Experiment]) -> list[Section]:
    """Returns one section per data set."""
    datasets = list(dict.fromkeys(e.dataset for e in experiments))
    sections = []
    for dataset in datasets:
        shown = [e for e in experiments if e.dataset == dataset]
        title = "Learning curves" + (f", {dataset}" if len(datasets) > 1 else "")
        labels = [_with_seeds(experiment) for experiment in shown]
        pictures = [
            drawing(
                functools.partial(learning_curve, shown, name),
                f"{CURVES[name][0]} of {', '.join(labels)} by step, on {dataset}.",
            )
            for name in available_curves(shown)
        ]
        legend = list(zip(line_styles(len(shown)), labels, strict=True))
        anchor = f"learning-{len(sections)}"
        sections.append(Section(anchor, title, legend=legend, pictures=pictures))
    return sections


def _with_seeds(experiment: Experiment) -> str:
    count = len(experiment.runs)
    return experiment.label + (f" ({count} seeds, one line each)" if count > 1 else "")
