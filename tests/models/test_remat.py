"""Activations that are computed again: the same numbers, and less to keep."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny


def deep(remat):
    model = tiny.tiny_model(split_rngs=True)
    return model.clone(encoder={**model.encoder, "num_layers": 6, "remat": remat})


@functools.cache
def pulled_back(remat):
    """Gradients of a loss, and the bytes that its forward pass keeps for them."""
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("dropout", "gating"))}
    params = jax.jit(deep("none").init)({"params": jax.random.key(1), **rngs}, images)

    def loss(params):
        logits, _ = deep(remat).apply(params, images, rngs=rngs)
        return jnp.sum(jnp.square(logits - 1))

    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))
    return jax.jit(jax.grad(loss))(params), size


@pytest.mark.parametrize(("remat", "share"), [("blocks", 0.3), ("all_but_products", 0.7)])
def test_gradients_are_the_same_and_less_is_kept(remat, share):
    expected, all_of_it = pulled_back("none")
    found, kept = pulled_back(remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
    assert kept < share * all_of_it
