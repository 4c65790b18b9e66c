"""Confidence intervals of means, by resampling."""

from typing import NamedTuple

import numpy as np

from vmoe_prc.arrays import Array, Float

LEVEL = 0.95
REPLICATES = 1000


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
    1979): what belongs to one unit, such as the patches of an image, stays together.

    Args:
      numerators: (N, M) sums over each unit, of M quantities.
      denominators: (N,) what each unit counts, such as its number of patches.
      level: Probability of the interval.
      replicates: Number of resamples.
      seed: Seed of the resampling.

    Returns:
      M intervals; all NaN where the denominators sum to 0.

    Raises:
      ValueError: If there are no units.
    """
    if not len(denominators):
        raise ValueError("there is nothing to resample")
    both = np.column_stack([numerators, denominators]).astype(np.float64)  # (N, M + 1)
    rng = np.random.default_rng(seed)
    count = len(both)
    sums = np.stack(
        [
            np.bincount(rng.integers(count, size=count), minlength=count) @ both
            for _ in range(replicates)
        ]
    )  # (R, M + 1)
    with np.errstate(invalid="ignore"):
        values = both[:, :-1].sum(axis=0) / both[:, -1].sum()
        ratios = sums[:, :-1] / sums[:, -1:]
    ratios = ratios[sums[:, -1] > 0]
    if not len(ratios):
        return [Interval(np.nan, np.nan, np.nan)] * (both.shape[1] - 1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(values, low, high, strict=True)]
