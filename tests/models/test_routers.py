"""Routers by their definitions, inside a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.models.moe import MlpMoeBlock

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
