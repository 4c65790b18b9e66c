"""Routers that learn from routers on a frozen dense teacher, by the definitions of TGR-MoE."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import fashion_mnist_prc
from vmoe_prc.checkpoints.transfer import plan_reading
from vmoe_prc.losses import auxiliary_loss
from vmoe_prc.models import Routing, VisionTransformerMoe, create_model
from vmoe_prc.models.teacher import TeacherGuidedMoe
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.trees import named_leaves
from vmoe_prc.steps.train import make_gradients

IMAGES = tiny.one_view_batch(4)["image"]


def student(**changes):
    plain = tiny.tiny_model(router={"num_selected_experts": 1, "noise_std": 0.0}, **changes)
    plain = plain.clone(encoder={**plain.encoder, "remat": "blocks"})
    names = [
        field.name for field in dataclasses.fields(plain) if field.name not in ("parent", "name")
    ]
    fields = {name: getattr(plain, name) for name in names}
    return plain, TeacherGuidedMoe(**fields, teacher={"hidden_size": 16, "mlp_dim": 24})


@pytest.mark.slow
def test_the_teacher_gates_are_those_of_a_linear_router_on_its_mlps_inputs():
    plain, guided = student(dropout_rate=0.0)
    params = jax.jit(guided.init)(jax.random.key(0), IMAGES)["params"]
    logits, routings = jax.jit(guided.apply)({"params": params}, IMAGES)
    own = {name: x for name, x in params.items() if not name.startswith("Teacher")}
    np.testing.assert_array_equal(logits, jax.jit(plain.apply)({"params": own}, IMAGES)[0])

    encoder = {"num_layers": 2, "mlp_dim": 24, "num_heads": 4}
    dense = VisionTransformerMoe(None, (8, 8), 16, encoder, deterministic=True)
    capture = {"capture_intermediates": lambda module, _: module.name == "LayerNorm_1"}
    observe = jax.jit(functools.partial(dense.apply, **capture))
    _, seen = observe({"params": params["Teacher"]}, IMAGES)
    features = seen["intermediates"]["Encoder"]["encoderblock_1"]["LayerNorm_1"]["__call__"][0]
    gates = jax.nn.softmax(features @ params["TeacherRouter_1"]["kernel"])
    routing = routings["encoderblock_1"]
    np.testing.assert_allclose(
        routing.teacher_gates, gates.reshape(routing.gates.shape), rtol=1e-4, atol=1e-6
    )
    evaluated = jax.eval_shape(guided.clone(deterministic=True).apply, {"params": params}, IMAGES)
    assert evaluated[1]["encoderblock_1"].teacher_gates is None


WEIGHTS = {
    "teacher_loss_weight": 5.0,
    "teacher_importance_loss_weight": 0.005,
    "teacher_entropy_loss_weight": 0.005,
    "teacher_until": 0.5,
}


def test_the_losses_by_their_definitions():
    rng = np.random.default_rng(0)
    logits, scores = rng.normal(size=(2, 1, 6, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    q = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    choices = jnp.zeros((1, 6, 1), jnp.int32)
    routing = Routing(
        logits=jnp.asarray(logits),
        noisy_logits=None,
        gates=jnp.asarray(p),
        dispatch_gates=jnp.asarray(p),
        experts=choices,
        kept=choices == 0,
        teacher_gates=jnp.asarray(q),
    )
    divergence = (q * np.log(q / p)).sum(-1).mean()
    importance = q.sum(1).var() / q.sum(1).mean() ** 2
    entropy = -(q * np.log(q)).sum(-1).mean()

    def total(progress):
        return auxiliary_loss({"encoderblock_0": routing}, balance=WEIGHTS, progress=progress)[0]

    expected = 5 * divergence + 0.005 * importance + 0.005 * entropy
    np.testing.assert_allclose(total(jnp.asarray(0.49)), expected, rtol=1e-4)
    assert total(jnp.asarray(0.5)) == 0


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher_and_its_router_learns_in_the_first_half():
    _, guided = student()
    params = jax.jit(guided.init)(jax.random.key(0), IMAGES)["params"]
    gradients = jax.jit(
        make_gradients(guided, loss={"name": "softmax_xent"}, balance=WEIGHTS, total_steps=10)
    )
    batch = tiny.one_view_batch(4)
    early, late = (named_leaves(gradients(params, batch, jnp.asarray(n))[0]) for n in (4, 5))
    for name, x in early.items():
        if name.startswith("Teacher/"):
            assert not x.any()
    assert early["TeacherRouter_1/kernel"].any() and not late["TeacherRouter_1/kernel"].any()
    assert early["Encoder/encoderblock_1/Moe/Router/dense/kernel"].any()


def test_the_recipe_loads_a_dense_run_into_the_teacher_and_freezes_it():
    config = fashion_mnist_prc.get_config("teacher=/runs/dense")

    def shapes(model):
        model = create_model(model, deterministic=True)
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        return named_leaves({"params": params})

    dense = config.model.to_dict()
    dense = {k: v for k, v in dense.items() if k != "teacher"} | {"name": "VisionTransformerMoe"}
    dense["encoder"]["moe"]["layers"] = ()
    source, target = shapes(dense), shapes(config.model.to_dict())
    rules = config.initialization.rules
    copied, unused = plan_reading(source, target, rules, raise_if_target_unmatched=False)
    of_teacher = {name for name in target if name.startswith("params/Teacher/")}
    assert copied.keys() == of_teacher and all("head" in name for name in unused)

    params = {"Teacher": {"kernel": jnp.ones(2)}, "TeacherRouter_1": {"kernel": jnp.ones(2)}}
    optimizer = create_optimizer(total_steps=6_000, **config.optimizer.to_dict())
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not updates["Teacher"]["kernel"].any()
    assert config.auxiliary_loss.teacher_loss_weight == 2.5  # two MoE blocks
