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
    total, metrics = auxiliary_loss(
        routings,
        balance={
            "importance_loss_weight": 0.5,
            "load_loss_weight": 0.25,
            "gshard_loss_weight": 2.0,
        },
    )
    block = 0.5 * data["importance_loss"] + 0.25 * data["load_loss_k2"] + 2 * data["gshard_loss"]
    close(total, 2 * block.mean())
    close(metrics["encoderblock_3/auxiliary_loss"], block.mean())
    close(metrics["encoderblock_1/load_loss"], data["load_loss_k2"].mean())


def test_loss_of_weight_zero_does_not_reach_the_total(golden):
    routing = make_routing(golden("router"))
    broken = routing.replace(noisy_logits=jnp.full_like(routing.logits, jnp.nan))

    def total(logits, **weights):
        balance = {"importance_loss_weight": 0.005, **weights}
        return auxiliary_loss({"b": broken.replace(logits=logits)}, balance=balance)[0]

    value, gradient = jax.value_and_grad(total)(routing.logits)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert jnp.isnan(total(routing.logits, load_loss_weight=0.005))


def test_load_loss_needs_noise(golden):
    routing = make_routing(golden("router"), noise=False)
    _, metrics = auxiliary_loss({"b": routing}, balance={"load_loss_weight": 1.0})
    assert "b/load_loss" not in metrics


def test_balance_over_the_batch_lets_each_group_keep_to_one_expert():
    one_expert_a_group = jnp.eye(4)[:, None].repeat(5, axis=1)  # (G, S, E): group e uses expert e
    for loss, balanced in ((balance.importance_loss, 0.0), (balance.gshard_loss, 1.0)):
        assert (loss(one_expert_a_group) > balanced + 1).all()
        np.testing.assert_allclose(loss(one_expert_a_group, "batch"), [balanced], atol=1e-12)


def test_load_over_the_batch_is_that_of_one_large_group(golden):
    data = golden("router")
    logits, noisy = jnp.asarray(data["logits"]), jnp.asarray(data["noisy_logits"])
    whole = (x.reshape(1, -1, x.shape[-1]) for x in (logits, noisy))
    expected = balance.load_loss(*whole, 1 / 8, 2)
    np.testing.assert_allclose(
        balance.load_loss(logits, noisy, 1 / 8, 2, "batch"), expected, rtol=1e-6
    )


def test_z_loss_is_the_squared_log_of_the_partition_function():
    logits = jnp.log(jnp.array([[[1.0, 2.0, 4.0]], [[1.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(balance.z_loss(logits), [np.log(7) ** 2, 0], rtol=1e-6)


def test_entropies_of_decided_undecided_and_balanced_gates():
    decided, undecided = jnp.eye(4)[None], jnp.full((1, 4, 4), 0.25)
    np.testing.assert_allclose(balance.local_entropy_loss(decided), [0], atol=1e-7)
    np.testing.assert_allclose(balance.local_entropy_loss(undecided), [np.log(4)], rtol=1e-6)
    collapsed = jnp.zeros((1, 4, 4)).at[..., 0].set(1)
    losses = [balance.global_entropy_loss(x)[0] for x in (decided, undecided, collapsed)]
    np.testing.assert_allclose(losses, [-np.log(4), -np.log(4), 0], rtol=1e-6)
    enough = [balance.global_entropy_loss(x, threshold=1.0)[0] for x in (decided, collapsed)]
    np.testing.assert_allclose(enough, [0, 1])
    gradient = jax.grad(lambda x: balance.local_entropy_loss(x)[0])(collapsed)
    assert jnp.isfinite(gradient).all()


def test_new_losses_are_metrics_only_with_a_weight(golden):
    routing = make_routing(golden("router"))
    _, metrics = auxiliary_loss({"b": routing})
    names = {"importance_loss", "load_loss", "gshard_loss", "auxiliary_loss"}
    assert metrics.keys() == {f"b/{name}" for name in names} | {"auxiliary_loss"}
    total, metrics = auxiliary_loss({"b": routing}, balance={"z_loss_weight": 0.5})
    np.testing.assert_allclose(total, 0.5 * metrics["b/z_loss"])


def test_an_option_that_no_loss_has_is_an_error():
    with pytest.raises(TypeError, match="no balance loss has the options lode_loss_weight"):
        auxiliary_loss({}, balance={"lode_loss_weight": 1.0})
