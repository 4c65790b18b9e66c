"""Models of other papers than V-MoE's, with the values of google-research/vmoe's own classes.

`vit_moe_ensemble.npz` is E³ with two members, `vit_moe_soft.npz` Soft MoE and
`vit_moe_expert_choice.npz` Expert Choice, both with norms of queries and keys: parameters, images,
logits, auxiliary losses, the loss and its gradients, as in the golden files of V-MoE.
"""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.losses import auxiliary_loss, classification_loss
from vmoe_prc.models import VisionTransformerMoe

BALANCE = {"importance_loss_weight": 0.005, "load_loss_weight": 0.005}
DISPATCHER = {"name": "gather", "capacity_factor": 1.05}
SINCOS2D = {"attention_qk_norm": True, "position_emb": {"name": "sincos2d"}}
# `classifier`, options of the encoder and of its mixtures.
MODELS = {
    "ensemble": (
        {"classifier": "token"},
        {},
        {
            "group_size": 2 * 2 * 17,
            "ensemble_size": 2,
            "router": {"num_selected_experts": 1, "noise_std": 0.0, "dispatcher": DISPATCHER},
        },
    ),
    "soft": (
        {"classifier": "map"},
        SINCOS2D,
        {"group_size": 16, "router": {"name": "SoftRouter", "num_slots": 3}},
    ),
    "expert_choice": (
        {"classifier": "gap", "representation_size": 12},
        SINCOS2D,
        {
            "group_size": 2 * 16,
            "router": {
                "name": "NoisyTopItemsPerExpertRouter",
                "noise_std": 0.0,
                "dispatcher": {
                    **DISPATCHER,
                    "capacity_ceil_or_round": "round",
                    "capacity_multiple_of": 1,
                },
            },
        },
    ),
}
LABELS = jax.nn.one_hot(jnp.arange(4), 10)


def create(name, encoder=None, router=None, dispatcher=None, **options):
    own, their_encoder, moe = MODELS[name]
    sizes = {"num_layers": 3, "mlp_dim": 24, "num_heads": 2}
    router = {**moe["router"], **(router or {})}
    if dispatcher:
        router["dispatcher"] = {**router["dispatcher"], **dispatcher}
    moe = {"num_experts": 4, "layers": (1, 2), "split_rngs": True, **moe, "router": router}
    return VisionTransformerMoe(
        num_classes=10,
        patch_size=(8, 8),
        hidden_size=16,
        encoder={**sizes, **their_encoder, **(encoder or {}), "moe": moe},
        **own,
        **options,
    )


def tree(data, prefix):
    flat = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("name", MODELS)
def test_training(golden, close, name):
    data = golden(f"vit_moe_{name}")
    model = create(name)
    balance = BALANCE if name == "ensemble" else {}  # Experts that choose need none.

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params):
        logits, routings = model.apply({"params": params}, data["images"])
        auxiliary, metrics = auxiliary_loss(routings, balance=balance)
        labels = jnp.repeat(LABELS, len(logits) // len(LABELS), axis=0)
        loss = jnp.mean(classification_loss(logits, labels)) + auxiliary
        return loss, (loss, logits, metrics)

    grads, (loss, logits, metrics) = gradients(tree(data, "params/"))
    close(logits, data["logits"])
    close(loss, data["softmax_xent_plus_aux"])
    for key in (k for k in data.files if k.startswith("metrics/")):
        close(metrics[key.removeprefix("metrics/")], data[key].mean())
    expected = tree(data, "grads/")
    assert jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, expected)
    jax.tree.map(functools.partial(close, tolerance=1e-4), grads, expected)


@pytest.mark.parametrize("average", ["softmax", "sigmoid"])
def test_losses_of_an_ensemble(golden, close, average):
    """Of its members in training, and of the mean of their probabilities in evaluation."""
    data = golden("vit_moe_ensemble")
    rows = jnp.repeat(LABELS, 2, axis=0)
    loss = functools.partial(classification_loss, name=f"ensemble_{average}_xent", ensemble_size=2)
    close(loss(jnp.asarray(data["logits"]), rows), data[f"{average}_xent_train"])
    model = create("ensemble", deterministic=True, ensemble_average=average)
    logits, _ = jax.jit(model.apply)({"params": tree(data, "params/")}, data["images"])
    close(loss(logits, LABELS), data[f"{average}_xent_eval"])


@pytest.mark.parametrize("dispatcher", ["einsum", "gather"])
def test_tokens_in_bfloat16(golden, close, dispatcher):
    """Only what travels to the experts and back is rounded."""
    data = golden("vit_moe_ensemble")
    model = create("ensemble", dispatcher={"name": dispatcher, "bfloat16": True})
    logits, _ = jax.jit(model.apply)({"params": tree(data, "params/")}, data["images"])
    close(logits, data["logits_dispatch_bfloat16"], tolerance=1e-4)
    assert np.abs(logits - data["logits"]).max() > 1e-3


def test_blocks_in_bfloat16(golden):
    """Embedding, last norm and head are float32, routers bfloat16 on request, as there."""
    data = golden("vit_moe_ensemble")
    model = create("ensemble", router={"dtype": "bfloat16"}, encoder={"dtype": "bfloat16"})
    logits, _ = jax.jit(model.apply)({"params": tree(data, "params/")}, data["images"])
    ours, theirs = (
        np.sqrt(np.mean(np.square(x - data["logits"])))
        for x in (logits, data["logits_encoder_bfloat16"])
    )
    # Rounded at other places of attention, by as much.
    assert theirs / 1.5 < ours < 1.5 * theirs
