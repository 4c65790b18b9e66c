"""Registers, layer scale, exact GELU and rotary places in models with experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import one_view_batch, tiny_model
from vmoe_prc.models.attention import Rotations

IMAGES = one_view_batch(4)["image"]


def changed(dispatcher, **encoder):
    model = tiny_model(deterministic=True, dispatcher=dispatcher)
    moe = model.encoder["moe"]
    router = {**moe["router"], "dispatcher": {"name": dispatcher, "capacity_factor": 4.0}}
    encoder = {**model.encoder, "moe": {**moe, "router": router}, **encoder}
    return dataclasses.replace(model, encoder=encoder)


def randomised(params, seed=0):
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(size=x.shape).astype(np.float32) * 0.2 for x in leaves])


def test_all_dispatchers_compute_the_same():
    options = {"num_registers": 2, "layer_scale": 0.5, "gelu": "exact"}
    options |= {"position_emb": {"name": "rope2d"}}
    outputs = {}
    for dispatcher in ("gather", "dropless"):
        model = changed(dispatcher, **options)
        params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        logits, routings = jax.jit(model.apply)(randomised(params), IMAGES)
        outputs[dispatcher] = logits
        # Registers are not routed: 4 images of 17 tokens in groups of 34.
        assert routings["encoderblock_1"].experts.shape[:2] == (2, 34)
    np.testing.assert_allclose(outputs["gather"], outputs["dropless"], atol=1e-5)
    other = changed("gather", **{**options, "gelu": "tanh"})
    assert (
        np.abs(jax.jit(other.apply)(randomised(params), IMAGES)[0] - outputs["gather"]).max() > 1e-5
    )


def test_scores_depend_on_the_distance_of_patches_alone():
    """Rotated queries and keys of equal content score equally at equal distances."""
    rotations = Rotations(rows=4, cols=4)
    rng = np.random.default_rng(0)
    query, key = (np.broadcast_to(rng.normal(size=8), (1, 17, 1, 8)) for _ in range(2))
    q, k = (
        np.asarray(rotations.rotate(jnp.asarray(x, jnp.float32)))[0, :, 0] for x in (query, key)
    )
    np.testing.assert_allclose(q[0], query[0, 0, 0], rtol=1e-6)  # The class token stays.
    grid = (q[1:] @ k[1:].T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(grid[0, 0, 1, 2], grid[1, 1, 2, 3], rtol=1e-4)
    np.testing.assert_allclose(grid[3, 0, 2, 2], grid[2, 1, 1, 3], rtol=1e-4)
    assert abs(grid[0, 0, 1, 2] - grid[0, 0, 2, 1]) > 1e-3


def test_heads_of_odd_sizes_cannot_rotate():
    with pytest.raises(ValueError, match="multiple of 4 channels, not 6"):
        Rotations(2, 2).angles(6)
