"""Balance losses against the golden values, and what they mean at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.losses import auxiliary_loss, balance
from vmoe_prc.models.routing import Routing


def test_golden_importance(golden, close):
    data = golden("router")
    close(balance.importance_loss(jnp.asarray(data["gates"])), data["importance_loss"])


def test_golden_gshard(golden, close):
    data = golden("router")
    close(balance.gshard_loss(jnp.asarray(data["gates_noisy"])), data["gshard_loss"])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_golden_load(golden, close, k):
    data = golden("router")
    logits, noisy = jnp.asarray(data["logits"]), jnp.asarray(data["noisy_logits"])
    loss = jax.jit(balance.load_loss, static_argnums=(2, 3))
    close(loss(logits, noisy, 1.0 / 8, k), data[f"load_loss_k{k}"])


def test_balanced_and_collapsed_routing():
    balanced = jnp.eye(4)[None]
    collapsed = jnp.zeros((1, 4, 4)).at[..., 0].set(1)
    np.testing.assert_allclose(balance.importance_loss(balanced), [0], atol=1e-12)
    np.testing.assert_allclose(balance.importance_loss(collapsed), [3])
    np.testing.assert_allclose(balance.gshard_loss(balanced), [1])
    np.testing.assert_allclose(balance.gshard_loss(collapsed), [4])


def test_gradient_is_finite_at_equal_importance():
    gradient = jax.grad(lambda g: balance.importance_loss(g)[0])(jnp.full((1, 6, 3), 1 / 3))
    np.testing.assert_array_equal(gradient, 0)


def make_routing(data, noise=True):
    zeros = jnp.zeros((2, 24, 2), jnp.int32)
    return Routing(
        logits=jnp.asarray(data["logits"]),
        noisy_logits=jnp.asarray(data["noisy_logits"]) if noise else None,
        gates=jnp.asarray(data["gates"]),
        dispatch_gates=jnp.asarray(data["gates_noisy"]),
        experts=zeros,
        kept=zeros == 0,
        noise_scale=1 / 8 if noise else 0.0,
    )


def test_auxiliary_loss_sums_over_blocks_the_mean_over_groups(golden, close):
    data = golden("router")
    routings = {"encoderblock_1": make_routing(data), "encoderblock_3": make_routing(data)}
    total, metrics = auxiliary_loss(routings, 0.5, 0.25, 2.0)
    block = 0.5 * data["importance_loss"] + 0.25 * data["load_loss_k2"] + 2 * data["gshard_loss"]
    close(total, 2 * block.mean())
    close(metrics["encoderblock_3/auxiliary_loss"], block.mean())
    close(metrics["encoderblock_1/load_loss"], data["load_loss_k2"].mean())


def test_loss_of_weight_zero_does_not_reach_the_total(golden):
    routing = make_routing(golden("router"))
    broken = routing.replace(noisy_logits=jnp.full_like(routing.logits, jnp.nan))

    def total(logits):
        return auxiliary_loss({"b": broken.replace(logits=logits)}, 0.005, 0.0)[0]

    value, gradient = jax.value_and_grad(total)(routing.logits)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert jnp.isnan(auxiliary_loss({"b": broken}, 0.005, 0.005)[0])


def test_load_loss_needs_noise(golden):
    _, metrics = auxiliary_loss({"b": make_routing(golden("router"), noise=False)}, 0.0, 1.0)
    assert "b/load_loss" not in metrics
