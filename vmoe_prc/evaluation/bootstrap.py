"""Confidence intervals of means, by resampling."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from vmoe_prc.arrays import Array, Float

LEVEL = 0.95
REPLICATES = 1000
Name = TypeVar("Name", bound=Hashable)


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def ratio_intervals(
    numerators: Float[Array, "N M"],
    denominators: Float[Array, " N"],
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[Interval]:
    """Estimates sum(numerators) / sum(denominators), resampling the N units.

    The percentile bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife",
    1979) over units: the patches of an image, for example, stay together.

    Args:
      numerators: (N, M) sums over each unit, of M quantities.
      denominators: (N,) size of each unit, such as its number of patches.
      level: Probability of the interval.
      replicates: Number of resamples.
      seed: Seed of the resampling.

    Returns:
      M intervals; all NaN where the denominators sum to 0.

    Raises:
      ValueError: If there are no units.
    """
    both = np.column_stack([numerators, denominators]).astype(np.float64)  # (N, M + 1)
    sums = resampled_sums(both, replicates=replicates, seed=seed)  # (R, M + 1)
    with np.errstate(invalid="ignore"):
        values = both[:, :-1].sum(axis=0) / both[:, -1].sum()
        ratios = sums[:, :-1] / sums[:, -1:]
    ratios = ratios[sums[:, -1] > 0]
    if not len(ratios):
        return [Interval(np.nan, np.nan, np.nan)] * (both.shape[1] - 1)
    return [
        percentile_interval(value, ratio, level=level)
        for value, ratio in zip(values, ratios.T, strict=True)
    ]


def resampled_sums(
    values: Float[np.ndarray, "N M"], *, replicates: int = REPLICATES, seed: int = 0
) -> Float[np.ndarray, "R M"]:
    """Sums M quantities jointly over resamples of N units, with replacement.

    Args:
      values: (N, M) quantities of each unit.
      replicates: R, the number of resamples.
      seed: Seed of the resampling.

    Raises:
      ValueError: If there are no units.
    """
    count = len(values)
    if not count:
        raise ValueError("there is nothing to resample")
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            np.bincount(rng.integers(count, size=count), minlength=count) @ values
            for _ in range(replicates)
        ]
    )


def resampled_totals(
    sums: Mapping[Name, Float[np.ndarray, "N ..."]],
) -> dict[Name, Float[np.ndarray, "R ..."]]:
    """Sums quantities jointly over all N units, and after that over resamples of them.

    Args:
      sums: Quantities of each unit by name, (N,) or (N, M).

    Returns:
      By name (1 + `REPLICATES`,) or (1 + `REPLICATES`, M), first the sums over all units.
    """
    columns = {name: values.reshape(len(values), -1) for name, values in sums.items()}
    table = np.concatenate(list(columns.values()), axis=1).astype(np.float64)
    rows = np.concatenate([table.sum(axis=0)[None], resampled_sums(table)])
    edges = np.cumsum([column.shape[1] for column in columns.values()])[:-1]
    parts = np.split(rows, edges, axis=1)
    return {
        name: part.reshape(len(part), *values.shape[1:])
        for (name, values), part in zip(sums.items(), parts, strict=True)
    }


def percentile_interval(
    value: float, replicates: Float[np.ndarray, " R"], *, level: float = LEVEL
) -> Interval:
    """Returns an estimate with the percentiles of the replicates in which it is defined."""
    replicates = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or not len(replicates):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))
