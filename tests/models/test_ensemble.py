"""E³: against routing each member by itself, and its losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vmoe_prc.losses.balance import BalanceLosses
from vmoe_prc.models.moe import MlpMoeBlock
from vmoe_prc.models.routing.ensemble import to_groups
from vmoe_prc.models.vit import ensemble_logits

MEMBERS, IMAGES, TOKENS, SIZE, OWN = 2, 4, 5, 8, 3
LOSSES = {"importance_loss_weight": 1.0, "load_loss_weight": 1.0, "gshard_loss_weight": 1.0}


def block(num_experts, members, images_per_group, deterministic):
    return MlpMoeBlock(
        mlp_dim=6,
        num_experts=num_experts,
        group_size=images_per_group * TOKENS * members,
        ensemble_size=members,
        split_rngs=True,
        deterministic=deterministic,
        router={
            "num_selected_experts": 2,
            "dispatcher": {"name": "gather", "capacity_factor": 9.0},
        },
    )


def member_params(params, member):
    """The parameters of a mixture of a member's experts only."""
    experts = slice(member * OWN, (member + 1) * OWN)
    kernel = params["Router"]["dense"]["kernel"][:, member]
    return {
        "Router": {"dense": {"kernel": kernel}},
        "Mlp": jax.tree.map(lambda x: x[experts], params["Mlp"]),
    }


@pytest.fixture(scope="module")
def problem():
    x = jax.random.normal(jax.random.key(0), (IMAGES * MEMBERS, TOKENS, SIZE))
    rngs = {"params": jax.random.key(1), "gating": jax.random.key(2)}
    params = jax.jit(block(MEMBERS * OWN, MEMBERS, 2, True).init)(rngs, x)["params"]
    return params, x


def test_a_member_is_a_mixture_of_its_own_experts(problem):
    params, x = problem
    outputs, routing = jax.jit(block(MEMBERS * OWN, MEMBERS, 2, True).apply)({"params": params}, x)
    assert routing.experts.shape == (2, 2 * TOKENS, 2 * MEMBERS)
    np.testing.assert_allclose(routing.gates.sum(-1), 1, rtol=1e-6)
    alone = jax.jit(block(OWN, 1, 2, True).apply)
    for member in range(MEMBERS):
        own = {"params": member_params(params, member)}
        expected, of_member = alone(own, x[member::MEMBERS])
        np.testing.assert_allclose(outputs[member::MEMBERS], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            routing.experts[..., member::MEMBERS], of_member.experts + member * OWN
        )


def test_losses_are_the_mean_of_those_of_the_members(problem):
    params, x = problem
    module = block(MEMBERS * OWN, MEMBERS, 2, False)
    key = jax.random.key(3)
    _, routing = jax.jit(module.apply)({"params": params}, x, rngs={"gating": key})
    assert routing.gates.shape == (2 * MEMBERS, 2 * TOKENS, OWN)
    assert routing.noise_scale == pytest.approx(1 / OWN)
    losses = dict(BalanceLosses.create(LOSSES).values(routing))
    tokens = to_groups(x, MEMBERS, 2 * TOKENS * MEMBERS).reshape(2, 2 * TOKENS, MEMBERS, SIZE)
    logits = jnp.einsum("gtmd,dme->gmte", tokens, params["Router"]["dense"]["kernel"])
    np.testing.assert_allclose(routing.logits, logits.reshape(-1, 2 * TOKENS, OWN), atol=1e-5)
    # The squared coefficient of variation of the sums of the gates, by member and group.
    sums = jax.nn.softmax(logits).sum(2)
    np.testing.assert_allclose(
        losses["importance_loss"], ((sums.std(-1) / sums.mean(-1)) ** 2).mean(), rtol=1e-4
    )
    assert jnp.isfinite(losses["load_loss"])


def test_a_mask_takes_no_places(problem):
    params, x = problem
    module = block(MEMBERS * OWN, MEMBERS, IMAGES, True).clone(
        router={"num_selected_experts": 2, "dispatcher": {"capacity_factor": 0.5}}
    )
    mask = jnp.repeat(jnp.arange(IMAGES) != 1, MEMBERS)
    _, routing = jax.jit(module.apply)({"params": params}, x, mask)
    kept = np.asarray(routing.kept).reshape(IMAGES, -1)
    assert not kept[1].any()
    assert kept[[0, 2, 3]].any()


def test_the_mean_of_probabilities():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    for average, function in (("softmax", jax.nn.softmax), ("sigmoid", jax.nn.sigmoid)):
        combined = function(ensemble_logits(logits, average))
        np.testing.assert_allclose(combined, function(logits).mean(1), rtol=1e-5)


def test_the_model_averages_its_members_in_evaluation():
    """The first blocks run once; the mean is over the rows which training has."""
    options = {"ensemble_size": 2, "group_size": 68, "dropout_rate": 0.0}
    model = tiny.tiny_model(deterministic=True, router={"noise_std": 0.0}, **options)
    images = tiny.one_view_batch(4)["image"]
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "gating", "dropout"))}
    params = jax.jit(model.init)(rngs, images)["params"]
    head = jax.random.normal(jax.random.key(5), params["head"]["kernel"].shape)
    params["head"]["kernel"] = head
    logits, _ = jax.jit(model.apply)({"params": params}, images)
    training = model.clone(deterministic=False)
    rows, _ = jax.jit(training.apply)({"params": params}, images, rngs=rngs)
    assert rows.shape == (8, 10)
    expected = jax.nn.softmax(rows).reshape(4, 2, 10).mean(1)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(rows[0], rows[1])
    headless = model.clone(num_classes=None)
    features, _ = jax.eval_shape(headless.apply, {"params": params}, images)
    assert features.shape == (4, 32)
