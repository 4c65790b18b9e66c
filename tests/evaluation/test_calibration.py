"""Log-likelihood, Brier score and calibration error of a few images, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.evaluation.calibration import calibration_metrics, calibration_sums

PROBABILITIES = jnp.array([[0.7, 0.2, 0.1], [0.65, 0.25, 0.1], [0.1, 0.9, 0.0], [0.5, 0.3, 0.2]])
LABELS = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]])


def metrics(mask=(True,) * 4, num_bins=10):
    sums = jax.jit(calibration_sums, static_argnums=3)
    logits = jnp.log(PROBABILITIES + 1e-12)
    return calibration_metrics(jax.device_get(sums(logits, LABELS, jnp.array(mask), num_bins)))


def test_of_three_images_and_one_without_label():
    found = metrics()
    # The first two are of the bin (0.6, 0.7], one right; the third, with two labels, is right.
    gaps = abs(0.7 + 0.65 - 1) + abs(0.9 - 1)
    assert found["ece"] == pytest.approx(gaps / 3, rel=1e-4)
    third = -0.5 * np.log(0.9) - 0.5 * np.log(1e-12)
    nll = -np.log(0.7) - np.log(0.25) + third
    assert found["nll"] == pytest.approx(nll / 3, rel=1e-4)
    brier = [0.3**2 + 0.2**2 + 0.1**2, 0.65**2 + 0.75**2 + 0.1**2, 0.1**2 + 0.4**2 + 0.5**2]
    assert found["brier"] == pytest.approx(sum(brier) / 3, rel=1e-4)


def test_masked_images_do_not_count():
    found = metrics(mask=(True, False, False, False))
    assert found["nll"] == pytest.approx(-np.log(0.7), rel=1e-4)
    assert found["ece"] == pytest.approx(0.3, rel=1e-4)
    assert metrics(mask=(False,) * 4) == {}
