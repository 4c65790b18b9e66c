"""The tables of the paper, accuracy and agreement of the routers, and how they use the experts."""

import dataclasses
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from vmoe_prc.report import published
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.runs import Run

ACCURACY = "top-1 accuracy"
AGREEMENT = {
    "top-1": "top1",
    "top-2": "top2",
    "top-2 unordered": "top2_unordered",
}
# Routers that use few experts agree easily.
IN_USE = "experts in use"
COLUMNS = (ACCURACY, *AGREEMENT, IN_USE)
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
    """The figures of an experiment.

    Attributes:
      experiment: The experiment.
      figures: Figures by column; a column that the runs do not have is missing.
    """

    experiment: Experiment
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


def make_tables(experiments: Iterable[Experiment], split: str = "test") -> list[Table]:
    """Makes the tables that the experiments have figures for.

    Args:
      experiments: The experiments.
      split: The split of accuracy and load; agreement is that of `{split}_pairs`.
    """
    rows = [_row(experiment, split) for experiment in experiments]
    tables = [
        _table("Top-1 accuracy (%)", [ACCURACY], rows),
        _table("Agreement of the experts of matched patches (%)", list(AGREEMENT), rows),
        _table("Experts in use: perplexity of their load (% of all)", [IN_USE], rows),
    ]
    return [table for table in tables if table.rows]


def figures_of(run: Run, split: str = "test") -> dict[str, float]:
    """Returns the figures of one run by their columns, in %."""
    metrics = {ACCURACY: f"{split}/accuracy"} | {
        column: f"{split}_pairs/{metric}" for column, metric in AGREEMENT.items()
    }
    found = {
        column: 100 * run.metrics[name] for column, name in metrics.items() if name in run.metrics
    }
    loads = _loads(run.metrics, split)
    if loads:
        found[IN_USE] = 100 * statistics.mean(map(_share_in_use, loads))
    return found


def _loads(metrics: Mapping[str, float], split: str) -> list[list[float]]:
    """Lists the load of the experts of each MoE block."""
    loads = defaultdict(list)
    for name, load in metrics.items():
        if match := re.fullmatch(rf"{re.escape(split)}/(\w+)/load/\d+", name):
            loads[match[1]].append(load)
    return list(loads.values())


def _share_in_use(load: Sequence[float]) -> float:
    """How many equally used experts have the entropy of this load, as a share of all."""
    entropy = -sum(share * math.log(share) for share in load if share > 0)
    return math.exp(entropy) / len(load)


def _row(experiment: Experiment, split: str) -> Row:
    figures = {}
    found = [figures_of(run, split) for run in experiment.runs]
    for column in COLUMNS:
        values = [own[column] for own in found if column in own]
        if len(values) == len(found):
            std = statistics.stdev(values) if len(values) > 1 else None
            figures[column] = Figure(statistics.mean(values), std)
    for column, figure in _published(experiment).items():
        figures[f"{column}, {PUBLISHED}"] = Figure(*figure)
    return Row(experiment, figures)


def _published(experiment: Experiment) -> dict[str, tuple[float, float | None]]:
    dataset, arm = experiment.dataset, (experiment.method, experiment.k)
    accuracy = published.ACCURACY.get(dataset, {}).get(arm)
    agreement = published.AGREEMENT.get(dataset, {}).get(arm, {})
    found = {ACCURACY: accuracy} if accuracy else {}
    for column, metric in AGREEMENT.items():
        if metric in agreement:
            found[column] = agreement[metric]
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
