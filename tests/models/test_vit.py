"""The model against the released program's values; its shapes, dtypes and invariances."""

import functools
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_prc
from vmoe_prc.checkpoints import vmoe_format
from vmoe_prc.losses import auxiliary_loss, classification_loss
from vmoe_prc.models import VisionTransformerMoe
from vmoe_prc.models.vit import sincos2d_embedding

GOLDEN = {
    "token_k2": {"classifier": "token", "representation_size": 32, "k": 2, "tokens": 17},
    "token_k1_norep": {
        "classifier": "token",
        "representation_size": None,
        "k": 1,
        "tokens": 17,
    },
    "gap_k2": {"classifier": "gap", "representation_size": 32, "k": 2, "tokens": 16},
}

BALANCE = {"importance_loss_weight": 0.005, "load_loss_weight": 0.005}


def make_model(
    k=2,
    tokens=17,
    dispatcher="einsum",
    noise_std=1.0,
    router=None,
    position_emb=None,
    dropout=0.0,
    num_layers=4,
    **options,
):
    options = {
        "classifier": "token",
        "representation_size": 32,
        "head_bias_init": -2.3,
        "deterministic": True,
        **options,
    }
    return VisionTransformerMoe(
        num_classes=10,
        patch_size=(8, 8),
        hidden_size=32,
        encoder={
            "num_layers": num_layers,
            "mlp_dim": 64,
            "num_heads": 4,
            "dropout_rate": dropout,
            "attention_dropout_rate": dropout,
            "position_emb": position_emb or {"name": "learned"},
            "moe": {
                "num_experts": 4,
                "layers": tuple(range(1, num_layers, 2)),
                "group_size": 2 * tokens,
                "split_rngs": False,
                "router": router
                or {
                    "num_selected_experts": k,
                    "noise_std": noise_std,
                    "dispatcher": {
                        "name": dispatcher,
                        "capacity_factor": 1.05,
                        "batch_priority": False,
                        "bfloat16": False,
                    },
                },
            },
        },
        **options,
    )


def golden_tree(data, prefix):
    flat = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("dispatcher", ["einsum", "gather"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(golden, close, name, dispatcher):
    data = golden(f"vit_moe_{name}")
    model = make_model(dispatcher=dispatcher, **GOLDEN[name])
    labels = jax.nn.one_hot(jnp.arange(4), 10)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params):
        logits, routings = model.apply({"params": params}, data["images"])
        auxiliary, metrics = auxiliary_loss(routings, balance=BALANCE)
        loss = jnp.mean(classification_loss(logits, labels)) + auxiliary
        return loss, (loss, logits, metrics)

    params = golden_tree(data, "params/")
    grads, (loss, logits, metrics) = gradients(params)
    close(logits, data["logits"])
    close(loss, data["softmax_xent_plus_aux"])
    for key in (k for k in data.files if k.startswith("metrics/")):
        close(metrics[key.removeprefix("metrics/")], data[key].mean())
    expected = golden_tree(data, "grads/")
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(close, tolerance=1e-4), grads, expected)


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_are_named_and_shaped_as_in_released_checkpoints(golden, name):
    data = golden(f"vit_moe_{name}")
    model = make_model(**GOLDEN[name])
    params = jax.eval_shape(model.init, jax.random.key(0), data["images"])["params"]
    expected = golden_tree(data, "params/")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"classifier": "map", "tokens": 16, "position_emb": {"name": "sincos2d"}},
        {
            "position_emb": {"name": "none"},
            "router": {
                "name": "NoisyTopItemsPerExpertRouter",
                "dispatcher": {"name": "gather", "capacity_factor": 1.0},
            },
        },
    ],
    ids=["map, sincos2d", "no position, expert choice"],
)
def test_options_train(options):
    model = make_model(deterministic=False, dropout=0.1, num_layers=2, **options)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    rngs = {n: jax.random.key(i) for i, n in enumerate(("params", "dropout", "gating"))}

    @jax.jit
    def step(images):
        variables = model.init(rngs, images)

        def loss(variables):
            logits, routings = model.apply(variables, images, rngs=rngs)
            return jnp.sum(logits**2) + auxiliary_loss(routings, balance=BALANCE)[0], routings

        return jax.grad(loss, has_aux=True)(variables)

    grads, routings = step(images)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert set(routings) == {"encoderblock_1"}
    routing = routings["encoderblock_1"]
    tokens = options.get("tokens", 17)
    assert routing.gates.shape == (2, 2 * tokens, 4)
    assert not np.array_equal(routing.gates, routing.dispatch_gates)
    assert routing.experts.dtype == jnp.int32
    assert routing.kept.dtype == bool


def test_takes_the_encoder_of_a_config():
    config = digits_prc.get_config().model
    model = VisionTransformerMoe(
        num_classes=10,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        encoder=config.encoder,
        deterministic=True,
    )
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((8, 32, 32, 3)))
    (logits, routings), _ = shapes
    assert logits.shape == (8, 10)
    assert routings["encoderblock_3"].experts.shape == (1, 8 * 65, 2)


def test_routing_record_is_deterministic_without_noise():
    model = make_model()
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    routing = jax.jit(lambda x: model.init_with_output(jax.random.key(1), x)[0][1])(images)
    routing = routing["encoderblock_1"]
    assert routing.noisy_logits is None
    assert routing.noise_scale == 0
    np.testing.assert_array_equal(routing.gates, routing.dispatch_gates)
    np.testing.assert_array_equal(
        routing.experts,
        np.argsort(-np.asarray(routing.gates), axis=-1, kind="stable")[..., :2],
    )
    assert routing.kept.shape == routing.experts.shape == (2, 34, 2)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_parameters_router_and_logits():
    model = make_model(dtype="bfloat16")
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (logits, routings), state = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))(
        variables, images
    )
    assert logits.dtype == jnp.float32
    assert routings["encoderblock_1"].logits.dtype == jnp.float32
    inside = state["intermediates"]["Encoder"]["encoderblock_1"]
    assert inside["SelfAttention"]["__call__"][0].dtype == jnp.bfloat16
    assert inside["Moe"]["Mlp"]["__call__"][0].dtype == jnp.bfloat16
    exact, _ = jax.jit(make_model().apply)(variables, images)
    np.testing.assert_allclose(logits, exact, atol=0.05)


@pytest.mark.slow
def test_bfloat16_of_the_encoder_only_leaves_residuals_and_head_alone():
    model = make_model()
    blocks_only = {**model.encoder, "dtype": "bfloat16", "attention_qk_norm": True}
    model = model.clone(encoder=blocks_only, classifier="map", head_kernel_zero_init=False)
    images = jax.random.normal(jax.random.key(0), (34, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    (logits, _), state = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))(
        variables, images
    )
    assert (logits != 0).all()
    inside = state["intermediates"]
    block = inside["Encoder"]["encoderblock_1"]
    assert block["SelfAttention"]["__call__"][0].dtype == jnp.bfloat16
    assert block["__call__"][0][0].dtype == jnp.float32
    for name in ("embedding", "MapHead", "pre_logits"):
        assert inside[name]["__call__"][0].dtype == jnp.float32
    attention = variables["params"]["Encoder"]["encoderblock_1"]["SelfAttention"]
    assert attention["query_ln"]["scale"].shape == (8,)
    head = variables["params"]["MapHead"]["MultiHeadDotProductAttention"]
    assert {"query_ln", "key_ln"} <= head.keys()


def test_a_dense_transformer_names_no_experts():
    model = make_model()
    encoder = {**model.encoder, "moe": {}}
    variables = jax.eval_shape(
        model.clone(encoder=encoder).init, jax.random.key(1), jnp.zeros((1, 32, 32, 3))
    )
    assert not [name for name in variables["params"]["Encoder"]["encoderblock_1"] if name == "Moe"]


def test_images_of_another_group_do_not_matter():
    model = make_model()
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(2), (32, 10))
    apply = jax.jit(lambda x: model.apply(variables, x)[0])
    np.testing.assert_allclose(apply(images)[:2], apply(images.at[2:].multiply(3))[:2], rtol=1e-5)


def test_sincos2d_tells_rows_from_columns():
    embedding = np.asarray(sincos2d_embedding(3, 5, 16)).reshape(3, 5, 16)
    assert np.ptp(embedding[..., :8], axis=0).max() == 0  # the column, whatever the row
    assert np.ptp(embedding[..., 8:], axis=1).max() == 0  # the row, whatever the column
    np.testing.assert_allclose(embedding[2, 3, 0], np.sin(3), rtol=1e-6)
    np.testing.assert_allclose(embedding[2, 3, 12], np.cos(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (
            {"tokens": 10},
            32,
            "group_size = 20 does not divide the number of tokens, 4 images x",
        ),
        ({}, 36, r"patch_size = \(8, 8\) does not divide the image size \(36, 36\)"),
        ({"classifier": "cls"}, 32, "unknown classifier 'cls'; allowed: token, gap, map"),
        ({"position_emb": {"name": "rope"}}, 32, "unknown position embedding 'rope'"),
        ({"k": 5}, 32, "num_selected_experts = 5 must be between 1 and num_experts = 4"),
    ],
)
def test_errors(options, size, message):
    model = make_model(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((4, size, size, 3)))


def test_a_released_checkpoint_gives_the_golden_logits(golden, close):
    folder = pathlib.Path(__file__).parent.parent / "data" / "golden" / "vmoe_checkpoint"
    params = vmoe_format.restore(folder / "vmoe_tiny")["params"]
    data = golden("vit_moe_token_k2")
    apply = jax.jit(make_model(**GOLDEN["token_k2"]).apply)
    logits, _ = apply({"params": params}, data["images"])
    close(logits, data["logits"])
