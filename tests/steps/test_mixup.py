"""Mixup's weights, what shares them, and what is mixed with what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.steps.mixup import mixup

IMAGES = jnp.eye(8).reshape(8, 2, 4, 1) * jnp.ones(3)
LABELS = jnp.eye(8)


@pytest.mark.parametrize("granularity", ["batch", "device", "example"])
@pytest.mark.parametrize("size", [2, 3])
def test_weights(granularity, size):
    images, labels = mixup(
        jax.random.key(3),
        IMAGES,
        LABELS,
        concentration=0.7,
        size=size,
        granularity=granularity,
        num_devices=2,
    )
    np.testing.assert_allclose(images.mean(-1).reshape(8, 8), labels, rtol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    assert (np.argmax(labels, -1) == np.arange(8)).all()  # the image itself weighs most
    # Partners are on the same device, as in V-MoE.
    for row, mixed in {0: [0, 1, 2], 3: [3, 0, 1], 7: [7, 4, 5]}.items():
        assert set(np.flatnonzero(labels[row])) == set(mixed[:size])
    distinct = len(np.unique(np.round(np.asarray(labels).max(-1), 5)))
    assert distinct == {"batch": 1, "device": 2, "example": 8}[granularity]


@pytest.mark.parametrize("options", [{"concentration": 0.0}, {"granularity": "pixel"}, {"size": 9}])
def test_errors(options):
    with pytest.raises(ValueError, match=r"mixup needs|cannot mix"):
        mixup(jax.random.key(0), IMAGES, LABELS, **{"concentration": 1.0, **options})
