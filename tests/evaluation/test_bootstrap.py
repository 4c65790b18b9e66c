"""Bootstrap intervals: values known in theory, and what they must not depend on."""

import numpy as np
import pytest

from vmoe_prc.evaluation.bootstrap import ratio_intervals


def test_agrees_with_the_standard_error_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, (4000, 1))
    (interval,) = ratio_intervals(values, np.ones(4000))
    half = 1.96 * values.std() / np.sqrt(4000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_ratio_weighs_units_by_what_they_count():
    first, second = ratio_intervals(np.array([[1.0, 0.0], [6.0, 2.0]]), np.array([2.0, 8.0]))
    assert (first.value, second.value) == (pytest.approx(0.7), pytest.approx(0.2))
    assert first.low == pytest.approx(0.5) and first.high == pytest.approx(0.75)
    assert second.low == pytest.approx(0) and second.high == pytest.approx(0.25)


def test_units_that_count_nothing():
    (interval,) = ratio_intervals(np.zeros((3, 1)), np.zeros(3))
    assert np.isnan(interval).all()
    with pytest.raises(ValueError, match="nothing to resample"):
        ratio_intervals(np.zeros((0, 1)), np.zeros(0))
