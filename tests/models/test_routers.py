"""Routers by their definitions, inside a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.losses.balance.smoothing import SmoothingOptions, smoothing_loss
from vmoe_prc.models.moe import MlpMoeBlock
from vmoe_prc.models.routing.sinkhorn import balanced_scores
from vmoe_prc.models.routing.smooth import smooth_weights

TOKENS, IMAGES, EXPERTS = 5, 4, 4


def block(group_size=TOKENS, deterministic=True, router=None, **options):
    return MlpMoeBlock(
        mlp_dim=6,
        num_experts=EXPERTS,
        group_size=group_size,
        split_rngs=True,
        deterministic=deterministic,
        router={"dispatcher": {"name": "dropless"}, **(router or {})},
        **options,
    )


def apply(module, seed=0):
    x = jax.random.normal(jax.random.key(seed), (IMAGES, TOKENS, 8))
    rngs = {"params": jax.random.key(1), "gating": jax.random.key(2)}
    variables = jax.jit(module.init)(rngs, x)
    outputs, routing = jax.jit(module.apply)(variables, x, rngs={"gating": jax.random.key(3)})
    return variables["params"], x, outputs, routing


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_whole_image_router_sends_all_tokens_of_an_image_to_the_same_experts(deterministic):
    router = {"name": "WholeImageRouter", "num_selected_experts": 2}
    params, x, _, routing = apply(block(4, deterministic, router))
    experts = routing.experts.reshape(IMAGES, TOKENS, 2)
    assert (experts == experts[:, :1]).all()
    assert len(np.unique(experts[:, 0], axis=0)) > 1
    logits = x.mean(axis=1) @ params["Router"]["dense"]["kernel"]
    expected = jnp.repeat(logits[:, None], TOKENS, axis=1).reshape(routing.logits.shape)
    np.testing.assert_allclose(routing.logits, expected, rtol=1e-4, atol=1e-6)


def mlp(params, x):
    hidden = jax.nn.gelu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


all_experts = jax.vmap(mlp, in_axes=(0, None), out_axes=-2)  # (..., E, D)


@pytest.mark.parametrize("normalize", [False, True])
def test_gates_and_shared_experts(normalize):
    router = {"num_selected_experts": 2, "normalize_gates": normalize}
    params, x, outputs, routing = apply(block(router=router, num_shared_experts=2))
    gates, experts = (a.reshape(IMAGES, TOKENS, -1) for a in (routing.gates, routing.experts))
    weights = jnp.take_along_axis(gates, experts, axis=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdims=True)
    chosen = jnp.take_along_axis(all_experts(params["Mlp"], x), experts[..., None], axis=-2)
    expected = jnp.einsum("NTK,NTKD->NTD", weights, chosen) + mlp(params["SharedMlp"], x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert params["SharedMlp"]["Dense_0"]["kernel"].shape == (8, 2 * 6)


@pytest.mark.parametrize("slots", [None, 3])
def test_soft_moe_mixes_tokens_into_slots_and_slots_into_tokens(slots):
    module = MlpMoeBlock(
        mlp_dim=6,
        num_experts=EXPERTS,
        group_size=2 * TOKENS,
        split_rngs=True,
        deterministic=True,
        router={"name": "SoftRouter", "num_slots": slots},
    )
    params, x, outputs, routing = apply(module)
    mu, scale = params["Router"]["mu"], 1.0
    assert mu.shape == (8, EXPERTS, slots or 1)  # 5 tokens over 4 experts
    unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    logits = jnp.einsum("NTD,DEp->NTEp", unit, scale * mu / jnp.linalg.norm(mu, axis=0))
    inputs = jnp.einsum("NTEp,NTD->NEpD", jax.nn.softmax(logits, axis=1), x)
    slots = jax.vmap(mlp, in_axes=(0, 1), out_axes=1)(params["Mlp"], inputs)
    combine = jax.nn.softmax(logits, axis=(2, 3))
    expected = jnp.einsum("NTEp,NEpD->NTD", combine, slots)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-5)
    gates = routing.gates.reshape(IMAGES, TOKENS, EXPERTS)
    np.testing.assert_allclose(gates, combine.sum(-1), rtol=1e-3, atol=1e-5)
    assert routing.kept.all() and routing.experts.shape[-1] == EXPERTS


def test_biases_move_the_choice_and_not_the_weights():
    router = {"name": "BiasBalancedRouter", "num_selected_experts": 1, "noise_std": 0.0}
    module = block(router=router, deterministic=False)
    x = jax.random.normal(jax.random.key(0), (IMAGES, TOKENS, 8))
    variables = jax.jit(module.init)({"params": jax.random.key(1)}, x)
    variables["params"]["Router"]["balance_bias"] = jnp.array([0.0, 5.0, 0.0, 0.0])

    def loss(variables):
        outputs, routing = module.apply(variables, x)
        return jnp.sum(outputs**2), (outputs, routing)

    grads, (outputs, routing) = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert (routing.experts == 1).all()
    gate = routing.gates.reshape(IMAGES, TOKENS, EXPERTS)[..., 1:2]
    expected = gate * all_experts(variables["params"]["Mlp"], x)[..., 1, :]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    # What a step subtracts: the expert that all choose loses, the others gain.
    change = grads["params"]["Router"]["balance_bias"]
    np.testing.assert_allclose(change, [-1e-3, 1e-3, -1e-3, -1e-3])


@pytest.mark.parametrize("dispatcher", ["dropless", "gather"])
def test_a_smooth_choice_by_its_definition(dispatcher):
    """SmoothSMoE: softmax(z + m), m = -softplus(50 ln(1 - u) - ln u), over k to k + 2 experts."""
    k, width = 1, 1.5
    router = {
        "name": "SmoothTopExpertsRouter",
        "num_selected_experts": k,
        "dispatcher": {"name": dispatcher, "capacity_factor": 8.0},
    }
    module = block(router=router)
    x = jax.random.normal(jax.random.key(0), (IMAGES, TOKENS, 8))
    variables = jax.jit(module.init)(jax.random.key(1), x)
    assert variables["params"]["Router"]["raw_width"] == -9
    variables["params"]["Router"]["raw_width"] = jnp.log(jnp.expm1(width))
    outputs, routing = jax.jit(module.apply)(variables, x)
    z = np.asarray(routing.logits, np.float64).reshape(IMAGES, TOKENS, EXPERTS)
    u = (z - np.sort(z)[..., -k, None] + width) / width
    with np.errstate(divide="ignore", invalid="ignore"):
        m = np.where(u >= 1, 0, -np.logaddexp(0, 50 * np.log(1 - u) - np.log(u)))
    weights = np.exp(z + np.where(u <= 0, -np.inf, m))
    active = (weights > 0).sum(-1)
    assert set(np.unique(active)) >= {1, 2, 3}
    weights[weights < np.sort(weights)[..., -3, None]] = 0  # no more than k + 2 experts
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("NTE,NTED->NTD", weights, all_experts(variables["params"]["Mlp"], x))
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-5)
    assert (routing.kept == routing.selected).all() and routing.dropped_share == 0
    np.testing.assert_array_equal(
        routing.selected.reshape(*active.shape, 3).sum(-1), active.clip(max=3)
    )
    loss = smoothing_loss(routing, SmoothingOptions())
    np.testing.assert_allclose(loss, [width * (active.mean() - (k + 0.5))], rtol=1e-5)


def test_choices_of_weight_0_take_no_slot():
    router = {"name": "SmoothTopExpertsRouter", "dispatcher": {"capacity_factor": 1.0}}
    _, _, _, routing = apply(block(IMAGES * TOKENS, router=router))
    slots = 8  # ceil(1.5 choices of 20 tokens for 4 experts), up to a multiple of 4
    wanted = np.bincount(routing.experts[routing.selected], minlength=EXPERTS)
    kept = np.bincount(routing.experts[routing.kept], minlength=EXPERTS)
    np.testing.assert_array_equal(kept, wanted.clip(max=slots))
    assert wanted.sum() < 2 * IMAGES * TOKENS


@pytest.mark.slow
def test_smooth_weights_have_no_jump_where_experts_change_places():
    def along_a_path(steps):
        shift = jnp.linspace(-0.5, 0.5, steps)
        return jnp.stack([1 + shift, 1 - shift, 0 * shift], axis=-1)[None]

    coarse, fine = (smooth_weights(along_a_path(n), 1, 0.2)[0] for n in (2001, 8001))
    np.testing.assert_allclose(coarse[jnp.array([0, -1])], [[0, 1, 0], [1, 0, 0]], atol=1e-12)
    # A jump would be as large on the finer grid.
    changes = [jnp.abs(jnp.diff(weights, axis=0)).max() for weights in (coarse, fine)]
    assert changes[1] < 0.3 * changes[0] < 0.02
    gradient = jax.grad(lambda z: smooth_weights(z, 1, 0.2)[0, :, 0].sum())(along_a_path(2001))
    assert jnp.isfinite(gradient).all()


def test_sinkhorn_balances_the_choice_in_training_and_follows_the_gates_in_evaluation():
    router = {"name": "SinkhornRouter", "sinkhorn_iterations": 100}
    skewed = jnp.array([3.0, 0.0, 0.0, 0.0])
    logits = skewed + jax.random.normal(jax.random.key(0), (1, 64, EXPERTS))
    plan = jnp.exp(balanced_scores(logits, 100))
    np.testing.assert_allclose(plan.sum(axis=1), 16.0, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=2), 1.0, rtol=1e-3)
    # Scaling rows and columns keeps the cross ratios.
    ratios = [x[0, 0, 0] * x[0, 1, 1] / (x[0, 0, 1] * x[0, 1, 0]) for x in (plan, jnp.exp(logits))]
    np.testing.assert_allclose(*ratios, rtol=1e-3)
    for deterministic in (False, True):
        _, _, _, routing = apply(block(IMAGES * TOKENS, deterministic, router))
        scores = routing.gates if deterministic else balanced_scores(routing.logits, 100)
        np.testing.assert_array_equal(routing.experts[..., 0], jnp.argmax(scores, axis=-1))
        assert routing.noisy_logits is None


def test_similar_tokens_share_their_gates():
    router = {"name": "SimilarityRouter", "temperature": 0.5}
    params, x, _, routing = apply(block(2 * TOKENS, router=router))  # groups of two images
    own = jax.nn.softmax(x @ params["Router"]["dense"]["kernel"])
    unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    share = jax.nn.softmax(unit @ unit.swapaxes(1, 2) / 0.5)
    np.testing.assert_allclose(routing.gates.reshape(own.shape), share @ own, rtol=1e-4, atol=1e-6)
