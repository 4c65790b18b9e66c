"""Differences of two experiments, seed by seed, with confidence intervals."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.tables import (
    ACCURACY,
    AGREEMENT,
    KAPPAS,
    metrics_of,
    num_images,
    sampling_error,
)

LEVEL = 0.95
# Two seeds have one degree of freedom: their interval, 12.7 standard errors, is useless.
MIN_SEEDS = 3
# Accuracy and agreement share this table, so agreement columns carry the word.
COLUMNS = {
    ACCURACY: ACCURACY,
    **{column: f"{column} agreement" for column in AGREEMENT},
    **{column: column for column in KAPPAS},
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean of paired differences, in points of %.

    Attributes:
      mean: The mean.
      low: Lower bound of its confidence interval, None where there is none.
      high: Upper bound.
    """

    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One experiment minus another one.

    Attributes:
      name: Names of minuend and subtrahend.
      seeds: The seeds that both have, in order; without runs that diverged.
      differences: Differences by column; a column that a run lacks is missing.
      sampling_error: Standard error of the difference of accuracy that comes from the
        choice of test images, in points; None if their number is unknown. It is computed
        for two independent samples: on the same images, as here, it is an upper bound.
    """

    name: str
    seeds: tuple[int, ...]
    differences: Mapping[str, Difference]
    sampling_error: float | None = None


@dataclasses.dataclass(frozen=True)
class DifferenceTable:
    """A table of comparisons.

    Attributes:
      title: Its title.
      columns: Titles of the columns of differences.
      rows: The comparisons.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Comparison, ...]


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """Estimates the mean of a - b, with the interval of Student's t.

    Runs with the same seed share initial parameters and the order of the data, so effects of
    the seed on both cancel. There is no interval for fewer than `MIN_SEEDS` pairs, nor where
    all differences are equal: they are multiples of one test image, and a width of 0 is
    chance.

    Args:
      a: One value per seed.
      b: Values of the same seeds.
      level: Probability of the interval.

    Raises:
      ValueError: If there is no pair, or the lengths differ.
    """
    values = [x - y for x, y in zip(a, b, strict=True)]
    if not values:
        raise ValueError("there is no pair to compare")
    mean, count = statistics.mean(values), len(values)
    # Differences that are equal but for the rounding of floats are equal.
    if count < MIN_SEEDS or max(values) - min(values) < 1e-9:
        return Difference(mean, None, None)
    quantile = float(stdtrit(count - 1, (1 + level) / 2))
    margin = quantile * statistics.stdev(values) / math.sqrt(count)
    return Difference(mean, mean - margin, mean + margin)


def compare(a: Experiment, b: Experiment, split: str = "test") -> Comparison:
    """Compares two experiments on the seeds that both have.

    Args:
      a: One experiment.
      b: The experiment that is subtracted.
      split: The split of the accuracy; agreement is from `{split}_pairs`.
    """
    by_seed = [
        {run.config["seed"]: metrics_of(run, split) for run in experiment.runs if not run.diverged}
        for experiment in (a, b)
    ]
    seeds = tuple(sorted(by_seed[0].keys() & by_seed[1].keys()))
    differences, error = {}, None
    for column, title in COLUMNS.items() if seeds else ():
        if not all(column in metrics[seed] for metrics in by_seed for seed in seeds):
            continue
        values = [[metrics[seed][column] for seed in seeds] for metrics in by_seed]
        differences[title] = paired_difference(values[0], values[1])
        count = num_images([*a.runs, *b.runs], split)
        if column == ACCURACY and count:
            error = math.hypot(*(sampling_error(statistics.mean(v), count) for v in values))
    return Comparison(f"{a.label} \N{MINUS SIGN} {b.label}", seeds, differences, error)


def difference_table(comparisons: Sequence[Comparison]) -> DifferenceTable:
    """Makes a table of the comparisons that have any seed."""
    rows = tuple(comparison for comparison in comparisons if comparison.seeds)
    columns = [c for c in COLUMNS.values() if any(c in row.differences for row in rows)]
    title = f"Differences over seeds (points), with {LEVEL:.0%} interval"
    return DifferenceTable(title, tuple(columns), rows)
