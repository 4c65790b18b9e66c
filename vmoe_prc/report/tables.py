"""The tables of the paper: accuracy, and agreement of the routers."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from vmoe_prc.report import published
from vmoe_prc.report.experiments import Experiment

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


def make_tables(experiments: Iterable[Experiment]) -> list[Table]:
    """Makes the tables of accuracy and agreement that the experiments have figures for."""
    rows = list(map(_row, experiments))
    tables = [
        _table("Top-1 accuracy (%)", [ACCURACY], rows),
        _table("Agreement of the experts of matched patches (%)", list(AGREEMENT), rows),
    ]
    return [table for table in tables if table.rows]


def _row(experiment: Experiment) -> Row:
    figures = {}
    for column, metric in {ACCURACY: "test/accuracy", **AGREEMENT}.items():
        values = [100 * r.metrics[metric] for r in experiment.runs if metric in r.metrics]
        if len(values) == len(experiment.runs):
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
