"""Gradients of models in bfloat16 that are float32 until they have been summed over devices."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vmoe_prc.models.float32_gradients import float32_gradients
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh, tree_shardings
from vmoe_prc.runtime.trees import named_leaves


def make_model(dispatcher, shard_kernels):
    model = tiny.tiny_model(
        deterministic=True, dispatcher=dispatcher, split_rngs=True, num_shared_experts=1
    ).clone(dtype="bfloat16", shard_kernels=shard_kernels, classifier="map")
    encoder = {**model.encoder, "num_registers": 4, "layer_scale": 1.0, "remat": "blocks"}
    moe = {**encoder["moe"], "group_size": 32}
    return model.clone(encoder={**encoder, "moe": moe})


@functools.cache
def images_and_params():
    images = tiny.one_view_batch()["image"]
    params = jax.jit(make_model("gather", False).init)(jax.random.key(0), images)["params"]
    # The head starts at zero, which would hide the gradients of all other layers.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (32, 10))
    return images, params


@functools.cache
def gradients(dispatcher, shard_kernels, num_devices, context):
    model, (images, params) = make_model(dispatcher, shard_kernels), images_and_params()

    def loss(params, images):
        logits, _ = model.apply({"params": params}, images)
        return jnp.mean(logits**2), logits

    mesh = create_mesh(min(num_devices, 2), jax.devices()[:num_devices])
    with jax.set_mesh(mesh), context():
        rules = [("Moe/Mlp/.*", ("expert",))]
        params = jax.device_put(params, tree_shardings(params, rules, mesh, shard_kernels))
        images = jax.device_put(images, batch_sharding(mesh))
        result, logits = jax.jit(jax.grad(loss, has_aux=True))(params, images)
        return named_leaves(jax.device_get(result)), jax.device_get(logits)


def is_rounded(x):
    return np.array_equal(x, x.astype(jnp.bfloat16).astype(np.float32))


def distance(a, b):
    """Norm of the difference of all gradients, relative to their norm."""
    a, b = (np.concatenate([x[name].ravel() for name in x]) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.slow
def test_the_forward_pass_is_that_of_linen_whose_gradients_are_rounded():
    exact, logits = gradients("gather", False, 1, float32_gradients)
    rounded, expected = gradients("gather", False, 1, contextlib.nullcontext)
    np.testing.assert_array_equal(logits, expected)
    of_layers = [name for name in exact if name.endswith(("/kernel", "/bias"))]
    assert sum(is_rounded(rounded[name]) for name in of_layers) > len(of_layers) / 2
    assert distance(exact, rounded) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dispatcher", "shard_kernels"), [("gather", False), ("gather", True), ("dropless", False)]
)
def test_no_gradient_is_rounded_after_its_sum_over_devices(dispatcher, shard_kernels):
    one, _ = gradients(dispatcher, False, 1, float32_gradients)
    eight, _ = gradients(dispatcher, shard_kernels, 8, float32_gradients)
    for name, gradient in eight.items():
        assert not is_rounded(gradient), name
    assert distance(eight, one) < 0.02


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(4, (3, 3), dtype=jnp.bfloat16),
        nn.Conv(4, (2, 2), strides=(2, 2), dtype=jnp.bfloat16),
        nn.DenseGeneral(4, axis=(0, 2), dtype=jnp.bfloat16),
        nn.DenseGeneral(4, batch_dims=(0,), dtype=jnp.bfloat16),
        nn.Dense(4, dot_general=lambda *args, **kwargs: jnp.ones((2, 6, 6, 4)), dtype=jnp.bfloat16),
    ],
)
def test_other_layers_of_users_stay_as_they_are(layer):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables = layer.init(jax.random.key(1), x)
    with float32_gradients():
        found = layer.apply(variables, x)
    np.testing.assert_array_equal(found, layer.apply(variables, x))
