"""PRC and its alternatives against the golden values, and what they mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.losses import auxiliary_loss, consistency
from vmoe_prc.models.routing import Routing

CASES = [
    f"{kind}_cls{cls}" for kind in ("32_8_crop", "224_32_crop", "96_16_affine") for cls in (0, 1)
]
LOSSES = {
    "prc": lambda g, p: consistency.prc_loss(g, p)[0],
    "prc per position": lambda g, p: consistency.prc_loss(g, p, diagonal="per_position")[0],
    "l2": consistency.l2_consistency,
    "jsd": consistency.jsd_consistency,
}


def load(golden, case):
    data = golden("prc")
    gates = jax.nn.softmax(jnp.asarray(data[f"logits_{case}"]))
    return data, gates, jnp.asarray(data[f"pairs_{case}"])


@pytest.mark.parametrize("case", CASES)
def test_golden_prc(golden, close, case):
    data, gates, pairs = load(golden, case)
    loss, terms = jax.jit(consistency.prc_loss)(gates, pairs)
    close(terms["num_pairs"], data[f"num_pairs_{case}"])
    close(terms["diagonal"], data[f"diagonal_{case}"])
    close(terms["off_diagonal"], data[f"off_diagonal_{case}"])
    close(loss, 5e-3 * data[f"diagonal_{case}"] + 5e-2 * data[f"off_diagonal_{case}"])


@pytest.mark.parametrize("case", CASES)
def test_golden_released_diagonal(golden, close, case):
    data, gates, pairs = load(golden, case)
    _, terms = consistency.prc_loss(gates, pairs, diagonal="per_position")
    close(terms["diagonal"], data[f"released_diagonal_{case}"])
    close(terms["off_diagonal"], data[f"off_diagonal_{case}"])


@pytest.mark.parametrize("case", CASES)
def test_golden_l2(golden, close, case):
    data, gates, pairs = load(golden, case)
    close(consistency.l2_consistency(gates, pairs), data[f"l2_{case}"])


@pytest.mark.parametrize("case", CASES[:2])
def test_correlation_and_jsd_recomputed_pair_by_pair(golden, close, case):
    data, gates, pairs = load(golden, case)
    correlation, divergence, twice, n = np.zeros((8, 8)), 0.0, 0.0, 0
    for image, image_pairs in zip(np.asarray(gates, np.float64), pairs, strict=True):
        before, num_pairs = divergence, np.sum(np.asarray(image_pairs)[:, 0] >= 0)
        for i, j in image_pairs:
            if i >= 0:
                a, b = image[0, i], image[1, j]
                m = (a + b) / 2
                correlation += np.outer(a, b)
                divergence += (a @ np.log(a / m) + b @ np.log(b / m)) / 2
                n += 1
        # PRC's released program sums a second time over the pairs of the image.
        twice += num_pairs * (divergence - before)
    close(correlation * 8 / n, data[f"correlation_{case}"])
    close(consistency.jsd_consistency(gates, pairs), divergence / n)
    close(consistency.jsd_consistency(gates, pairs, "times_pairs"), twice / n)


def identity_pairs(num_images, num_tokens):
    tokens = jnp.arange(num_tokens, dtype=jnp.int32)
    return jnp.broadcast_to(jnp.stack([tokens, tokens], -1), (num_images, num_tokens, 2))


def test_agreement_and_balance_give_zero():
    one_hot = jnp.tile(jnp.eye(4), (3, 2, 2, 1))
    loss, terms = consistency.prc_loss(one_hot, identity_pairs(3, 8))
    np.testing.assert_allclose([loss, terms["diagonal"], terms["off_diagonal"]], 0, atol=1e-12)


def test_agreement_on_a_single_expert_costs():
    collapsed = jnp.zeros((3, 2, 8, 4)).at[..., 0].set(1)
    _, terms = consistency.prc_loss(collapsed, identity_pairs(3, 8))
    np.testing.assert_allclose(terms["diagonal"], (3**2 + 3 * 1) / 4)
    np.testing.assert_allclose(terms["off_diagonal"], 0)
    assert consistency.l2_consistency(collapsed, identity_pairs(3, 8)) < 1e-4


# As in docs/METHODS.md: 8 experts, the default weights.
REWARDS = {
    ("balanced", "matrix"): 0.0,
    ("balanced", "per_position"): 0.0044,
    ("collapsed", "matrix"): 0.0350,
    ("collapsed", "per_position"): 0.0046,
    ("undecided", "matrix"): 0.0046,
    ("undecided", "per_position"): 0.0057,
}


@pytest.mark.parametrize(("routing", "diagonal"), REWARDS)
def test_what_each_diagonal_rewards(routing, diagonal):
    experts = {
        "balanced": jnp.add.outer(jnp.arange(8), jnp.arange(17)) % 8,
        "collapsed": jnp.zeros((8, 17), int),
    }
    gates = (
        jax.nn.one_hot(experts[routing], 8) if routing in experts else jnp.full((8, 17, 8), 0.125)
    )
    views = jnp.stack([gates, gates], axis=1)
    loss, _ = consistency.prc_loss(views, identity_pairs(8, 17), diagonal=diagonal)
    np.testing.assert_allclose(loss, REWARDS[routing, diagonal], atol=5e-5)


def test_jsd_bounds():
    opposite = jnp.zeros((1, 2, 1, 2)).at[0, 0, 0, 0].set(1).at[0, 1, 0, 1].set(1)
    np.testing.assert_allclose(
        consistency.jsd_consistency(opposite, identity_pairs(1, 1)), np.log(2), rtol=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_no_pair_gives_zero_with_zero_gradient(name):
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 2, 5, 4)))
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(gates, jnp.full((2, 4, 2), -1))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_flows_through_both_views_and_matched_tokens_alone(name):
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 2, 5, 4)))
    pairs = jnp.full((2, 4, 2), -1).at[1, 2].set(jnp.array([3, 1]))
    gradient = np.abs(jax.jit(jax.grad(LOSSES[name]))(gates, pairs)).sum(-1) > 0
    assert np.argwhere(gradient).tolist() == [[1, 0, 3], [1, 1, 1]]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_finite_where_gates_vanish(name):
    gates = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(1)
    gradient = jax.jit(jax.grad(LOSSES[name]))(gates, identity_pairs(1, 2))
    assert jnp.isfinite(gradient).all()


@jax.jit
def all_losses(gates, pairs):
    return jnp.stack([loss(gates, pairs) for loss in LOSSES.values()])


@given(seed=st.integers(0, 1000))
def test_order_of_images_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    gates = jax.nn.softmax(jnp.asarray(rng.normal(size=(4, 2, 6, 3)), jnp.float32))
    pairs = jnp.asarray(rng.integers(0, 6, size=(4, 5, 2)), jnp.int32)
    pairs = jnp.where(jnp.asarray(rng.random((4, 5, 1)) < 0.3), -1, pairs)
    order = rng.permutation(4)
    np.testing.assert_allclose(
        all_losses(gates, pairs), all_losses(gates[order], pairs[order]), rtol=1e-5, atol=1e-7
    )


def test_auxiliary_loss_reads_pairs_of_adjacent_views():
    logits = jax.random.normal(jax.random.key(0), (2, 10, 4))  # 2 groups, 4 images, 5 tokens
    gates = jax.nn.softmax(logits)
    experts = jnp.zeros((2, 10, 1), jnp.int32)
    routing = Routing(logits, None, gates, gates, experts, experts == 0)
    pairs = identity_pairs(2, 5)
    expected, terms = consistency.prc_loss(gates.reshape(2, 2, 5, 4), pairs)
    total, metrics = auxiliary_loss(
        {"a": routing, "b": routing}, pairs=pairs, consistency={"name": "prc"}
    )
    np.testing.assert_allclose(total, 2 * expected)
    np.testing.assert_allclose(metrics["b/diagonal"], terms["diagonal"])
    total, _ = auxiliary_loss(
        {"a": routing}, pairs=pairs, consistency={"name": "l2", "weight": 3.0}
    )
    np.testing.assert_allclose(
        total, 3 * consistency.l2_consistency(gates.reshape(2, 2, 5, 4), pairs)
    )


def routing_of(logits):
    """Two groups of two images: two pairs of views of 5 tokens."""
    gates = jax.nn.softmax(logits)
    experts = jnp.zeros((2, 10, 1), jnp.int32)
    return Routing(logits, None, gates, gates, experts, experts == 0)


@pytest.mark.parametrize("options", [{"name": "prc"}, {"name": "jsd", "weight": 2.0}])
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_view_without_gradient_is_a_target(options, stopped):
    logits = jax.random.normal(jax.random.key(0), (2, 10, 4))

    def loss(logits, **more):
        pairs = identity_pairs(2, 5)
        return auxiliary_loss(
            {"block_1": routing_of(logits)}, pairs=pairs, consistency=options | more
        )[0]

    whole, whole_gradient = jax.jit(jax.value_and_grad(loss))(logits)
    to_target = jax.value_and_grad(lambda z: loss(z, stop_gradient=f"view{stopped}"))
    value, gradient = jax.jit(to_target)(logits)
    views = gradient.reshape(2, 2, 5, 4)
    np.testing.assert_allclose(value, whole)
    np.testing.assert_array_equal(views[:, stopped], 0)
    np.testing.assert_allclose(
        views[:, 1 - stopped], whole_gradient.reshape(2, 2, 5, 4)[:, 1 - stopped], rtol=1e-6
    )


def test_only_the_blocks_asked_for_have_the_loss():
    keys = jax.random.split(jax.random.key(0))
    routings = {
        f"encoderblock_{block}": routing_of(jax.random.normal(key, (2, 10, 4)))
        for block, key in zip((1, 11), keys, strict=True)
    }
    pairs = identity_pairs(2, 5)

    def loss(**more):
        return auxiliary_loss(routings, pairs=pairs, consistency={"name": "prc"} | more)

    total, metrics = loss(blocks=(11,))
    both, both_metrics = loss(blocks=None)
    assert total == metrics["encoderblock_11/consistency_loss"] > 0
    assert "encoderblock_1/consistency_loss" not in metrics
    np.testing.assert_allclose(
        both, both_metrics["encoderblock_1/consistency_loss"] + total, rtol=1e-6
    )


def test_errors():
    gates, pairs = jnp.ones((2, 2, 5, 4)), jnp.zeros((2, 5, 2), jnp.int32)
    with pytest.raises(ValueError, match="unknown diagonal 'trace'; allowed: matrix"):
        consistency.prc_loss(gates, pairs, diagonal="trace")
    with pytest.raises(ValueError, match="needs pairs"):
        auxiliary_loss(
            {"a": Routing(gates[0], None, gates[0], gates[0], pairs, pairs == 0)},
            consistency={"name": "prc"},
        )
