"""Accuracy where images have one label, several or none."""

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.steps.accuracy import accuracy, is_correct, main_class

PREDICTIONS = [0, 1, 2, 0, 1]
LOGITS = jnp.eye(3)[jnp.array(PREDICTIONS)]
LABELS = jnp.array(
    [
        [1.0, 0.0, 0.0],  # right
        [1.0, 1.0, 0.0],  # the second of two labels: right
        [1.0, 1.0, 0.0],  # neither of two
        [0.0, 0.0, 0.0],  # no label, and class 0 is predicted
        [0.4, 0.6, 0.0],  # the heavier label of a mixture: right
    ]
)


def test_any_of_several_labels_is_right_and_an_image_without_labels_does_not_count():
    np.testing.assert_array_equal(is_correct(LOGITS, LABELS), [True, True, False, False, True])
    assert accuracy(LOGITS, LABELS) == 0.75
    assert is_correct(LOGITS, LABELS).mean() == pytest.approx(0.6)  # V-MoE's, of all images
    assert jnp.isnan(accuracy(LOGITS, jnp.zeros_like(LABELS)))
    np.testing.assert_array_equal(main_class(LABELS), [0, 0, 0, -1, 1])
