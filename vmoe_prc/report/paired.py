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
        {
            run.config["seed"]: {
                COLUMNS[column]: value
                for column, value in metrics_of(run, split).items()
                if column in COLUMNS
            }
            for run in experiment.runs
            if not run.diverged
        }
        for experiment in (a, b)
    ]
    found = compare_by_seed(f"{a.label} \N{MINUS SIGN} {b.label}", *by_seed)
    count = num_images([*a.runs, *b.runs], split)
    if not count or ACCURACY not in found.differences:
        return found
    means = (
        statistics.mean(metrics[seed][ACCURACY] for seed in found.seeds) for metrics in by_seed
    )
    error = math.hypot(*(sampling_error(mean, count) for mean in means))
    return dataclasses.replace(found, sampling_error=error)


def compare_by_seed(
    name: str, a: Mapping[int, Mapping[str, float]], b: Mapping[int, Mapping[str, float]]
) -> Comparison:
    """Compares columns, in %, on the seeds that both have, where all of their runs have them.

    Args:
      name: Name of the comparison.
      a: Columns by seed.
      b: The columns that are subtracted, by seed.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    runs = [side[seed] for side in (a, b) for seed in seeds]
    differences = {
        column: paired_difference([a[s][column] for s in seeds], [b[s][column] for s in seeds])
        for column in (runs[0] if runs else ())
        if all(column in run for run in runs)
    }
    return Comparison(name, seeds, differences)


def difference_table(comparisons: Sequence[Comparison]) -> DifferenceTable:
    """Makes a table of the comparisons that have any seed."""
    rows = tuple(comparison for comparison in comparisons if comparison.seeds)
    columns = [c for c in COLUMNS.values() if any(c in row.differences for row in rows)]
    title = f"Differences over seeds (points), with {LEVEL:.0%} interval"
    return DifferenceTable(title, tuple(columns), rows)
