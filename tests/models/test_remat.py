"""Activations that are computed again: the same numbers, and less to keep."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny


def loss_of(remat, num_layers):
    """Returns a loss of the parameters, and parameters."""
    model = tiny.tiny_model(split_rngs=True)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("dropout", "gating"))}
    kept, plain = (
        model.clone(encoder={**model.encoder, "num_layers": num_layers, "remat": name})
        for name in (remat, "none")
    )

    def loss(params):
        logits, _ = kept.apply(params, images, rngs=rngs)
        return jnp.sum(jnp.square(logits - 1))

    return loss, functools.partial(plain.init, {"params": jax.random.key(1), **rngs}, images)


@functools.cache
def gradients(remat):
    loss, init = loss_of(remat, num_layers=2)
    return jax.jit(jax.grad(loss))(jax.jit(init)())


@functools.cache
def bytes_kept(remat):
    """Bytes that the forward pass of six blocks keeps for the gradients."""
    loss, init = loss_of(remat, num_layers=6)
    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], jax.eval_shape(init))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "share"), [("blocks", 0.3), ("all_but_products", 0.7)])
def test_gradients_are_the_same_and_less_is_kept(remat, share):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradients(remat),
        gradients("none"),
    )
    assert bytes_kept(remat) < share * bytes_kept("none")
