"""Classification losses against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.losses import class_probabilities, classification_loss

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
LABELS = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_softmax():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = -np.log([p[0, 0], p[1, 1]])
    np.testing.assert_allclose(classification_loss(LOGITS, LABELS), expected, rtol=1e-6)


def test_sigmoid_sums_over_classes():
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(LABELS * np.log(p) + (1 - LABELS) * np.log(1 - p)).sum(-1)
    actual = classification_loss(LOGITS, LABELS, "sigmoid_xent")
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_label_smoothing():
    smooth = LABELS * 0.7 + 0.1
    np.testing.assert_allclose(
        classification_loss(LOGITS, LABELS, label_smoothing=0.3),
        classification_loss(LOGITS, smooth),
        rtol=1e-6,
    )


def test_errors():
    with pytest.raises(
        ValueError, match="unknown classification loss 'hinge'; allowed: ensemble_sigmoid_xent"
    ):
        classification_loss(LOGITS, LABELS, "hinge")
    with pytest.raises(ValueError, match=r"need labels of the same shape, not \(1, 3\)"):
        classification_loss(LOGITS, LABELS[:1])


@pytest.mark.parametrize("prefix", ["", "ensemble_"])
def test_probabilities_are_those_of_the_loss(prefix):
    logits = jnp.array([[0.0, 2.0, -1.0]])
    softmax = class_probabilities(logits, f"{prefix}softmax_xent")
    np.testing.assert_allclose(softmax, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)
    sigmoid = class_probabilities(logits, f"{prefix}sigmoid_xent")
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), rtol=1e-5)
