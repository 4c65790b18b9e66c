"""A model with split kernels computes what the model with whole kernels does."""

import jax
import numpy as np
import pytest
import tiny

from vmoe_prc.runtime.mesh import batch_sharding, create_mesh, tree_shardings


@pytest.mark.slow
def test_every_layer_gives_the_same_values_and_gradients():
    model = tiny.tiny_model(deterministic=True).clone(classifier="map", representation_size=24)
    model = model.clone(encoder={**model.encoder, "moe": {}})
    images = tiny.one_view_batch(8)["image"]
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    # The head starts at zero, which would hide the gradients of all other layers.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (24, 10))

    def loss(params, images, shard_kernels):
        logits, _ = model.clone(shard_kernels=shard_kernels).apply({"params": params}, images)
        return (logits**2).mean(), logits

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    expected = gradient(params, images, False)
    mesh = create_mesh(2)
    with jax.set_mesh(mesh):
        shardings = tree_shardings(params, (), mesh, shard_kernels=True)
        params = jax.device_put(params, shardings)
        gradients, logits = gradient(params, jax.device_put(images, batch_sharding(mesh)), True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (gradients, logits),
        expected,
    )
    assert gradients["pre_logits"]["kernel"].sharding == shardings["pre_logits"]["kernel"]
