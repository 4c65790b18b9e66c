"""Dropless dispatch computes what buffers without a limit do, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.models.moe import MlpMoeBlock
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh

UNLIMITED = 4.0  # E: all tokens fit, should they all choose one expert.


def block(
    method,
    capacity_factor=UNLIMITED,
    batch_priority=False,
    sent_as_bfloat16=False,
    dispatcher=(),
    **options,
):
    dispatcher = {
        "name": method,
        "capacity_factor": capacity_factor,
        "batch_priority": batch_priority,
        "bfloat16": sent_as_bfloat16,
        **dict(dispatcher),
    }
    router = {"num_selected_experts": 2, "noise_std": 0.0, "dispatcher": dispatcher}
    return MlpMoeBlock(
        mlp_dim=24, num_experts=4, group_size=20, split_rngs=True, router=router, **options
    )


@functools.cache
def problem(skewed=False):
    """Tokens and parameters; skewed: nearly all choices are of two experts."""
    x = jax.random.normal(jax.random.key(0), (16, 10, 16))
    variables = jax.jit(block("gather").init)({"params": jax.random.key(1)}, x)
    if skewed:
        x = x.at[..., 0].set(10.0)
        kernel = variables["params"]["Router"]["dense"]["kernel"]
        kernel = kernel.at[0].set(jnp.asarray([1.0, -1.0, -1.0, 1.0]))
        variables["params"]["Router"]["dense"]["kernel"] = kernel
    return variables, x


def run(module, variables, x, **options):
    def loss(variables, x):
        out, routing = module.apply(variables, x, **options)
        return jnp.sum(jnp.sin(out)), (out, routing)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)


def assert_alike(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize("skewed", [False, True])
def test_equals_unlimited_capacity_with_gradients(skewed):
    variables, x = problem(skewed)
    expected = run(block("gather"), variables, x)
    actual = run(block("dropless", capacity_factor=0.5, batch_priority=True), variables, x)
    assert_alike(actual, expected)
    routing = actual[1][1]
    assert routing.kept.all()
    load = np.bincount(np.asarray(routing.experts).ravel(), minlength=4) / routing.experts.size
    assert load.max() > 0.45 if skewed else load.max() < 0.4


def on_eight_devices(partitions, device_capacity_factor=None):
    variables, x = problem(skewed=True)
    module = block("dropless", dispatcher={"device_capacity_factor": device_capacity_factor})
    mesh = create_mesh(partitions)
    with jax.set_mesh(mesh):
        return run(module, variables, jax.device_put(x, batch_sharding(mesh)))


# With room for four times the mean, a device takes all choices of its row.
@pytest.mark.parametrize(
    ("partitions", "device_capacity_factor"), [(1, None), (4, None), (1, 1.5), (4, 4.0), (2, 2.0)]
)
def test_eight_devices_equal_one(partitions, device_capacity_factor):
    expected = run(block("dropless"), *problem(skewed=True))
    assert_alike(on_eight_devices(partitions, device_capacity_factor), expected)


def test_choices_beyond_the_bound_of_a_device_are_dropped():
    _, (expected, _) = run(block("dropless"), *problem(skewed=True))
    _, (out, routing) = on_eight_devices(4, device_capacity_factor=1.5)
    experts, kept = (np.asarray(x).reshape(2, -1) for x in (routing.experts, routing.kept))
    bound = 1.5 * experts.size / 8
    for row in range(2):  # Each row has 4 devices, with an expert each.
        wanted = np.bincount(experts[row], minlength=4)
        taken = np.bincount(experts[row][kept[row]], minlength=4)
        assert wanted.max() > bound
        np.testing.assert_array_equal(taken, np.minimum(wanted, bound))
    whole = np.asarray(routing.kept).all(axis=-1).reshape(out.shape[:2])
    nothing = ~np.asarray(routing.kept).any(axis=-1).reshape(out.shape[:2])
    assert whole.any() and nothing.any()
    np.testing.assert_allclose(out[whole], expected[whole], rtol=1e-5, atol=1e-5)
    assert not out[nothing].any()


def test_parameters_start_as_with_other_methods():
    variables, x = problem()
    own = jax.jit(block("dropless").init)({"params": jax.random.key(1)}, x)
    jax.tree.map(np.testing.assert_array_equal, own, variables)


@pytest.mark.slow
def test_dropout_scales_what_it_keeps():
    variables, x = problem()
    module = block("dropless", dropout_rate=0.5)
    apply = jax.jit(lambda key: module.apply(variables, x, rngs={"dropout": key})[0])
    outputs = np.stack([apply(jax.random.key(i)) for i in range(300)])
    expected, _ = jax.jit(block("dropless").apply)(variables, x)
    error = jnp.mean(outputs, axis=0) - expected
    spread = jnp.std(outputs, axis=0)
    assert jnp.mean(spread) > 0.05
    assert jnp.mean(jnp.abs(error)) < 2 * jnp.mean(spread) / 300**0.5
    deterministic = block("dropless", dropout_rate=0.5, deterministic=True)
    assert_alike(jax.jit(deterministic.apply)(variables, x)[0], expected)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"sent_as_bfloat16": True}])
def test_bfloat16_is_close(options):
    variables, x = problem()
    expected, _ = jax.jit(block("dropless").apply)(variables, x)
    actual, _ = jax.jit(block("dropless", **options).apply)(variables, x)
    assert np.any(actual != expected)
    np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.05)
