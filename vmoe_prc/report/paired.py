"""Differences of two experiments, seed by seed, with confidence intervals."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.tables import ACCURACY, AGREEMENT, figures_of

LEVEL = 0.95
# All figures in one table: unlike in the tables of the paper, agreement has to be called so.
COLUMNS = {ACCURACY: ACCURACY} | {column: f"{column} agreement" for column in AGREEMENT}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean of paired differences, in points of %.

    Attributes:
      mean: The mean.
      low: Lower bound of its confidence interval; None for a single pair.
      high: Upper bound.
    """

    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One experiment minus another one.

    Attributes:
      name: What is subtracted from what.
      seeds: The seeds that both have, in order.
      differences: Differences by column; a column that a run lacks is missing.
    """

    name: str
    seeds: tuple[int, ...]
    differences: Mapping[str, Difference]


@dataclasses.dataclass(frozen=True)
class DifferenceTable:
    """A table of comparisons.

    Attributes:
      title: What it shows.
      columns: Titles of the columns of differences.
      rows: The comparisons.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Comparison, ...]


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """Estimates the mean of a - b, with the interval of Student's t.

    Pairs share what their seed decides (the initial parameters, the order of the data), so
    what it does to both of them cancels.

    Args:
      a: Values, one a seed.
      b: Values of the same seeds.
      level: Probability of the interval.

    Raises:
      ValueError: If there is no pair, or the lengths differ.
    """
    values = [x - y for x, y in zip(a, b, strict=True)]
    if not values:
        raise ValueError("there is no pair to compare")
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Difference(mean, None, None)
    quantile = float(stdtrit(count - 1, (1 + level) / 2))
    margin = quantile * statistics.stdev(values) / math.sqrt(count)
    return Difference(mean, mean - margin, mean + margin)


def compare(a: Experiment, b: Experiment, split: str = "test") -> Comparison:
    """Compares two experiments on the seeds that both of them have.

    Args:
      a: One experiment.
      b: The one that is subtracted.
      split: The split of the accuracy; agreement is that of `{split}_pairs`.
    """
    by_seed = [
        {run.config["seed"]: figures_of(run, split) for run in experiment.runs}
        for experiment in (a, b)
    ]
    seeds = tuple(sorted(by_seed[0].keys() & by_seed[1].keys()))
    differences = {}
    for column, title in COLUMNS.items() if seeds else ():
        values = [[own[seed].get(column) for seed in seeds] for own in by_seed]
        if None not in values[0] + values[1]:
            differences[title] = paired_difference(*values)
    return Comparison(f"{a.label} \N{MINUS SIGN} {b.label}", seeds, differences)


def difference_table(comparisons: Sequence[Comparison]) -> DifferenceTable:
    """Makes a table of the comparisons that have any seed."""
    rows = tuple(comparison for comparison in comparisons if comparison.seeds)
    columns = [c for c in COLUMNS.values() if any(c in row.differences for row in rows)]
    title = f"Differences over seeds (points), with {LEVEL:.0%} interval"
    return DifferenceTable(title, tuple(columns), rows)
