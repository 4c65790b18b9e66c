"""Swapped routings: which experts they choose, and what they cost where the answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vmoe_prc.analysis.external_routing import apply_with_logits
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.swap import other_view_logits, swap_routings, swap_test
from vmoe_prc.steps.views import by_image


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


def test_swaps_change_experts_and_keep_gates():
    logits = jax.random.normal(jax.random.key(0), (3, 5, 6))
    swapped = swap_routings(logits, 2, jax.random.key(1))
    for values in swapped.values():
        np.testing.assert_array_equal(jnp.sort(values), jnp.sort(logits))
    own, following = (np.asarray(jax.lax.top_k(x, 3)[1]) for x in (logits, swapped["next_best"]))
    np.testing.assert_array_equal(following, own[..., [0, 2, 1]])
    assert (np.asarray(jax.lax.top_k(swapped["one_expert"], 2)[1]) == [0, 1]).all()
    random = np.asarray(swapped["random"].argmax(-1))
    assert (random != own[..., 0]).any() and len(np.unique(random)) > 3


def test_the_other_view_gives_logits_to_matched_tokens_only():
    logits = np.arange(2 * 2 * 4.0).reshape(2, 2, 4, 1)
    pairs = np.array([[[0, 2], [3, 0], [-1, -1]], [[-1, -1], [2, 2], [-1, -1]]])
    found = np.asarray(other_view_logits(jnp.asarray(logits), jnp.asarray(pairs)))
    np.testing.assert_array_equal(found[..., 0], [[6, 1, 2, 4], [8, 9, 14, 11]])


def test_a_models_own_logits_from_outside_change_nothing(run):
    batch = next(run.batches("test"))
    apply = jax.jit(lambda p, x: run.model.apply({"params": p}, x))
    outputs, routings = apply(run.params, batch["image"])
    logits = {b: by_image(r.logits, len(batch["image"])) for b, r in routings.items()}
    forced = jax.jit(lambda p, x, z: apply_with_logits(run.model, p, x, z))
    again, same = forced(run.params, batch["image"], logits)
    np.testing.assert_allclose(again, outputs, atol=1e-5)
    assert all((same[b].experts == routings[b].experts).all() for b in routings)
    others = {b: jnp.roll(x, 1, axis=-1) for b, x in logits.items()}
    _, moved = forced(run.params, batch["image"], others)
    np.testing.assert_array_equal(
        moved["encoderblock_1"].gates.argmax(-1),
        (routings["encoderblock_1"].gates.argmax(-1) + 1) % run.num_experts,
    )
    (wrong,) = logits.values()
    with pytest.raises(ValueError, match="no router to replace in encoderblock_0"):
        forced(run.params, batch["image"], {"encoderblock_0": wrong})


@pytest.mark.parametrize("router", ["SimilarityRouter", "WholeImageRouter"])
def test_logits_from_outside_are_final_where_a_router_mixes_tokens(router):
    """They are neither averaged again nor of another shape, also in blocks computed again."""
    model = tiny.tiny_model(deterministic=True, router={"name": router})
    model = model.clone(encoder={**model.encoder, "remat": "blocks"})
    images = tiny.one_view_batch(4)["image"]
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    shape = (4, 17, 4)
    logits = {"encoderblock_1": jax.random.normal(jax.random.key(1), shape)}
    _, routings = jax.jit(lambda p: apply_with_logits(model, p, images, logits))(params)
    found = routings["encoderblock_1"].logits.reshape(shape)
    np.testing.assert_array_equal(found, logits["encoderblock_1"])


@pytest.mark.slow
def test_routing_among_equal_experts_is_worth_nothing(run):
    """Experts that are copies of one: whichever are chosen, the answer is the same."""
    params = jax.tree.map(lambda x: x, run.params)
    mlp = params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
    params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"] = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:1], x.shape), mlp
    )
    found = swap_test(dataclasses.replace(run, params=params))
    table = found.routings.set_index(["images", "routing"])
    same = [("clean", name) for name in ("own", "next_best", "random", "one_expert")]
    np.testing.assert_allclose(table.loc[same, "nll_change"], 0, atol=1e-5)
    gains = found.gains.set_index("measure")["value"]
    assert gains["D_random"] == 0


@pytest.mark.slow
def test_routing_among_opposite_experts_is_worth_something(run):
    """Experts whose outputs differ in sign and are large: random ones change likelihood."""
    params = jax.tree.map(lambda x: x, run.params)
    mlp = params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
    signs = jnp.asarray((-1.0) ** np.arange(run.num_experts)) * 30

    def scale(x):
        return x * signs.reshape(-1, *[1] * (x.ndim - 1))

    params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"] = {
        **mlp,
        "Dense_1": jax.tree.map(scale, mlp["Dense_1"]),
    }
    # After a few steps the head is nearly 0, as it began.
    params["head"] = jax.tree.map(lambda x: 100 * x, params["head"])
    found = swap_test(dataclasses.replace(run, params=params))
    table = found.routings.set_index(["images", "routing"])
    assert set(table.index) == {
        *(("clean", r) for r in ("own", "other_view", "shuffled", "noisy", "next_best", "random")),
        *(("clean", "one_expert"), ("noisy", "own"), ("noisy", "clean")),
    }
    assert abs(table.loc[("clean", "random"), "nll_change"]) > 1e-3  # 1e-5 among equal experts
    assert table.loc[("clean", "own"), "nll_change"] == 0
    gains = found.gains.set_index("measure")
    assert set(gains.index) == {"routed_flops", "D_random", "D_view", "oracle_gain"}
    assert (gains["low"] <= gains["value"]).drop("routed_flops").all()
    # By hand: 16 patches of 8x8 pixels and a class token, D = 16, MLPs of 32, K = 2 in one block.
    mlp_flops = 17 * 2 * (2 * 16 * 32)
    attention_flops = 4 * 17 * 2 * 16**2 + 2 * 2 * 17**2 * 16
    embedding_flops = 16 * 2 * (8 * 8 * 3) * 16
    whole = 2 * attention_flops + 3 * mlp_flops + embedding_flops
    assert gains["value"]["routed_flops"] == pytest.approx(2 * mlp_flops / whole, rel=0.02)
