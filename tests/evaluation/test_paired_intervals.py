"""Intervals of paired differences: known values, coverage, and samples without any change."""

import numpy as np
import pytest

from vmoe_prc.evaluation.paired_intervals import mean_difference, share_difference


def _pair(both, first_only, second_only, neither):
    counts = (both, first_only, second_only, neither)
    first = np.repeat([True, True, False, False], counts)
    return first, np.repeat([True, False, True, False], counts)


def test_share_difference_by_hand():
    """Bonett and Price's formula with 6 gained and 1 lost of 50."""
    value, low, high = share_difference(*_pair(20, 6, 1, 23))
    gained, lost = 7 / 52, 2 / 52
    margin = 1.959964 * np.sqrt((gained + lost - (gained - lost) ** 2) / 52)
    assert value == pytest.approx(5 / 50)
    np.testing.assert_allclose((low, high), (gained - lost - margin, gained - lost + margin))


def test_no_change_in_few_images_does_not_exclude_small_changes():
    value, low, high = share_difference(*_pair(300, 0, 0, 59))
    assert value == 0
    np.testing.assert_allclose((low, high), (-0.0077, 0.0077), atol=1e-4)


@pytest.mark.parametrize("changed", [(0, 9, 0, 0), (0, 0, 9, 0), (0, 1, 0, 0), (1, 0, 0, 0)])
def test_bounds_stay_possible_and_around_the_value(changed):
    value, low, high = share_difference(*_pair(*changed))
    assert -1 <= low <= value <= high <= 1


@pytest.mark.parametrize(("gained", "lost"), [(0.002, 0.002), (0.01, 0.0), (0.1, 0.05)])
def test_share_difference_covers_the_truth(gained, lost):
    rng = np.random.default_rng(0)
    covered = []
    for first_only, second_only, rest in rng.multinomial(
        300, [gained, lost, 1 - gained - lost], size=1000
    ):
        _, low, high = share_difference(*_pair(rest, first_only, second_only, 0))
        covered.append(low <= gained - lost <= high)
    assert np.mean(covered) >= 0.93


def test_mean_difference():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 2.0])
    value, low, high = mean_difference(first, second)
    margin = 1.959964 * np.std([1, 0, 2], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose((value, low, high), (1, 1 - margin, 1 + margin), rtol=1e-6)
    assert np.isnan(mean_difference(first[:1], second[:1]).low)
