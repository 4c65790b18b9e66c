"""From runs to the tables of the paper: accuracy, and agreement of the routers."""

import collections
import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmoe_prc.config import flatten
from vmoe_prc.report import published
from vmoe_prc.report.runs import Run

# What a run may differ in without being another experiment.
IGNORED = {
    "seed",
    "description",
    "initialization.prefix",
    "report_progress.every_steps",
    "save_checkpoint.every_steps",
    "save_checkpoint.keep_last",
    "evaluate.every_steps",
    "profile",
}
IGNORED_OF_DATASETS = {"data_dir", "manual_dir", "cache", "prefetch", "prefetch_device"}
METHODS = {None: "V-MoE", "prc": "PRC", "l2": "L2", "jsd": "JSD"}
ACCURACY = "top-1 accuracy"
AGREEMENT = {
    "top-1": "test_pairs/top1",
    "top-2": "test_pairs/top2",
    "top-2 unordered": "test_pairs/top2_unordered",
}
PUBLISHED = "published"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A quantity in %, over seeds.

    Attributes:
      mean: Its mean.
      std: Sample standard deviation (n − 1); None for one run, or if it was not given.
    """

    mean: float
    std: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment: runs that differ in their seeds alone.

    Attributes:
      dataset: Name of the data set.
      method: 'V-MoE', 'PRC', ...
      k: Selected experts; None where the experts select.
      settings: What sets it apart from other rows of the same method, if there are any.
      seeds: The seeds, in order.
      figures: Figures by column; a column that the runs do not have is missing.
    """

    dataset: str
    method: str
    k: int | None
    settings: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Figure]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
      title: What it shows.
      columns: Titles of the columns of figures.
      rows: The rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def make_tables(runs: Iterable[Run]) -> tuple[list[Table], list[str]]:
    """Makes the tables of accuracy and agreement.

    Args:
      runs: Finished runs, in any order.

    Returns:
      The tables that the runs have figures for, and warnings of runs that are left out
      since another one has the same configuration and seed.
    """
    groups, warnings = _group(runs)
    rows = sorted(map(_row, groups, _settings(groups)), key=_order)
    tables = [
        _table("Top-1 accuracy (%)", [ACCURACY], rows),
        _table("Agreement of the experts of matched patches (%)", list(AGREEMENT), rows),
    ]
    return [table for table in tables if table.rows], warnings


def _group(runs: Iterable[Run]) -> tuple[list[list[Run]], list[str]]:
    groups: dict[str, dict[int, Run]] = collections.defaultdict(dict)
    warnings = []
    for run in runs:
        group = groups[json.dumps(_experiment(run.config), sort_keys=True)]
        seed = run.config["seed"]
        if seed in group:
            warnings.append(
                f"left out: {run.workdir}: the same configuration and seed {seed} as "
                f"{group[seed].workdir}"
            )
        else:
            group[seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()], warnings


def _experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that make an experiment what it is, by dotted names."""
    flat = flatten(config)
    datasets = {name for name in flat if name.startswith("dataset.")}
    dropped = {name for name in datasets if name.rpartition(".")[2] in IGNORED_OF_DATASETS}
    return {name: v for name, v in flat.items() if name not in IGNORED | dropped}


def _settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Tells groups apart that the first columns do not."""
    alike = collections.defaultdict(list)
    for group in groups:
        alike[_name(group[0])].append(_experiment(group[0].config))
    settings = []
    for group in groups:
        experiment, others = _experiment(group[0].config), alike[_name(group[0])]
        differing = sorted(
            name
            for name in {name for other in others for name in other}
            if len({json.dumps(other.get(name)) for other in others}) > 1
        )
        settings.append(", ".join(f"{name}={experiment.get(name)}" for name in differing))
    return settings


def _name(run: Run) -> tuple[str, str, int | None]:
    consistency = run.config["consistency"]
    method = METHODS[consistency and consistency["name"]]
    moe = run.config["model"]["encoder"]["moe"]
    k = moe["router"].get("num_selected_experts") if moe["layers"] else None
    return run.config["dataset"]["train"]["name"], method if moe["layers"] else "dense", k


def _row(group: Sequence[Run], settings: str) -> Row:
    dataset, method, k = _name(group[0])
    figures = {}
    for column, metric in {ACCURACY: "test/accuracy", **AGREEMENT}.items():
        values = [100 * run.metrics[metric] for run in group if metric in run.metrics]
        if len(values) == len(group):
            std = statistics.stdev(values) if len(values) > 1 else None
            figures[column] = Figure(statistics.mean(values), std)
    for column, figure in _published(dataset, method, k).items():
        figures[f"{column}, {PUBLISHED}"] = Figure(*figure)
    seeds = tuple(run.config["seed"] for run in group)
    return Row(dataset, method, k, settings, seeds, figures)


def _published(dataset: str, method: str, k: int | None) -> dict[str, tuple[float, float | None]]:
    accuracy = published.ACCURACY.get(dataset, {}).get((method, k))
    agreement = published.AGREEMENT.get(dataset, {}).get((method, k), {})
    found = {ACCURACY: accuracy} if accuracy else {}
    for column, metric in AGREEMENT.items():
        name = metric.rpartition("/")[2]
        if name in agreement:
            found[column] = agreement[name]
    return found


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Keeps the rows that have a figure of their own, and the columns that have any."""
    kept = tuple(row for row in rows if any(column in row.figures for column in columns))
    shown = tuple(
        name
        for column in columns
        for name in (column, f"{column}, {PUBLISHED}")
        if any(name in row.figures for row in kept)
    )
    return Table(title, shown, kept)


def _order(row: Row) -> tuple[Any, ...]:
    """The order of the paper's table; other data sets and methods follow."""
    datasets, methods = list(published.ACCURACY), list(METHODS.values())
    known = row.dataset in datasets
    return (
        datasets.index(row.dataset) if known else len(datasets),
        row.dataset,
        row.k or 0,
        methods.index(row.method) if row.method in methods else len(methods),
        row.settings,
    )
