"""Confidence intervals of differences between two conditions of the same images."""

import math

import numpy as np
from scipy.special import ndtri

from vmoe_prc.arrays import Bool, Float
from vmoe_prc.evaluation.bootstrap import LEVEL, Interval


def share_difference(
    first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"], *, level: float = LEVEL
) -> Interval:
    """Estimates the difference of two shares, such as accuracies, of the same units.

    The adjusted Wald interval of Bonett and Price, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data" (2012): one unit is added to each kind
    of change. Unlike the normal approximation, it has a length above 0 where no unit changed:
    no change in N units does not exclude changes in a share of about 3 / N.

    Args:
      first: (N,) whether each unit has the property, under the first condition.
      second: (N,) the same under the second condition.
      level: Probability of the interval.

    Returns:
      mean(first) - mean(second), and its bounds in [-1, 1].
    """
    count = len(first)
    gained = (np.sum(first & ~second) + 1) / (count + 2)
    lost = (np.sum(second & ~first) + 1) / (count + 2)
    centre = gained - lost
    margin = _quantile(level) * math.sqrt((gained + lost - centre**2) / (count + 2))
    value = float(first.mean() - second.mean())
    return Interval(value, float(max(centre - margin, -1)), float(min(centre + margin, 1)))


def mean_difference(
    first: Float[np.ndarray, " N"], second: Float[np.ndarray, " N"], *, level: float = LEVEL
) -> Interval:
    """Estimates mean(first - second) over N units, with the normal approximation.

    Args:
      first: (N,) values under the first condition.
      second: (N,) values of the same units under the second condition.
      level: Probability of the interval.

    Returns:
      The mean difference and its bounds; NaN bounds for a single unit.
    """
    difference = first.astype(np.float64) - second
    value, margin = float(difference.mean()), math.nan
    if len(difference) > 1:
        margin = _quantile(level) * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Interval(value, value - margin, value + margin)


def _quantile(level: float) -> float:
    return float(ndtri((1 + level) / 2))
