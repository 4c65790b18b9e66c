"""Runs that start from the parameters of another run or file."""

import json
import pathlib

import cv2
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny

from vmoe_prc.checkpoints import vmoe_format
from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.checkpoints.params import read_params, write_params
from vmoe_prc.config import ConfigError
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.recipes import FINE_TUNE_RULES, upcycling_rules
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.steps.state import TrainState, abstract_train_state, create_train_state
from vmoe_prc.steps.train import make_train_step
from vmoe_prc.train.initialization import initialize

TIMM = pathlib.Path(__file__).parents[1] / "data" / "golden" / "torch_vits" / "timm_vit"
RELEASED = pathlib.Path(__file__).parents[1] / "data" / "golden" / "vmoe_checkpoint" / "vmoe_tiny"
KERNEL = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
OPTIONS = {
    "rules": [("^(.*)$", r"\1")],
    "raise_if_source_unmatched": True,
    "raise_if_target_unmatched": True,
}


def new_state(seed, image_size=32, experts=2, use_ema=False):
    tokens = (image_size // 8) ** 2 + 1
    model = tiny.tiny_model(group_size=2 * tokens)
    optimizer = create_optimizer(total_steps=10, **tiny.OPTIMIZER)
    shape = (16, image_size, image_size, 3)
    abstract = abstract_train_state(
        model, optimizer, shape, create_mesh(experts), tiny.RULES, use_ema=use_ema
    )
    return create_train_state(model, optimizer, shape, seed, abstract)


def save(state, workdir):
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        checkpointer.save(7, state)
        checkpointer.wait()
    return workdir


def flat(params):
    return flax.traverse_util.flatten_dict({"params": jax.device_get(params)}, sep="/")


@pytest.mark.slow
def test_starts_from_a_run_on_another_mesh(tmp_path):
    saved = new_state(1, experts=4)
    before = new_state(2)
    state, table = initialize(before, {**OPTIONS, "prefix": str(save(saved, tmp_path))})
    for name, x in flat(saved.params).items():
        np.testing.assert_array_equal(flat(state.params)[name], x)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, before)
    assert int(state.step) == 0
    assert table.splitlines()[-1] == f"{len(flat(before.params))} loaded"


@pytest.mark.slow
def test_the_average_is_what_another_run_starts_from(tmp_path):
    saved = new_state(1, use_ema=True)
    saved = saved.replace(ema_params=jax.tree.map(lambda x: x + 1, saved.params))
    state, _ = initialize(
        new_state(2, use_ema=True), {**OPTIONS, "prefix": str(save(saved, tmp_path))}
    )
    for tree in (state.params, state.ema_params):
        for name, x in flat(saved.ema_params).items():
            np.testing.assert_array_equal(flat(tree)[name], x)


@pytest.mark.slow
def test_fine_tunes_at_another_resolution_with_a_new_head(tmp_path):
    saved = new_state(1)
    before = new_state(2, image_size=64)
    options = {**OPTIONS, "rules": FINE_TUNE_RULES, "raise_if_target_unmatched": False}
    state, table = initialize(before, {**options, "prefix": str(save(saved, tmp_path))})
    source, old, new = flat(saved.params), flat(before.params), flat(state.params)
    kernel = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    np.testing.assert_array_equal(new[kernel], source[kernel])
    np.testing.assert_array_equal(new["params/head/kernel"], old["params/head/kernel"])
    embedding = "params/Encoder/posembed_input/pos_embedding"
    assert new[embedding].shape == (1, 65, 32)
    np.testing.assert_array_equal(new[embedding][:, 0], source[embedding][:, 0])
    assert "1 vit_zoom" in table and "2 new" in table and "2 unused" in table


def deep_model(image_size, **moe):
    """A model like the one in the released checkpoint."""
    model = tiny.tiny_model(group_size=2 * ((image_size // 8) ** 2 + 1), **moe)
    return model.clone(
        representation_size=32,
        encoder={**model.encoder, "num_layers": 4, "moe": {**model.encoder["moe"], **moe}},
    )


def state_of(model, image_size, seed=0):
    optimizer = create_optimizer(total_steps=10, **tiny.OPTIMIZER)
    shape = (16, image_size, image_size, 3)
    rules = tiny.RULES if model.encoder["moe"]["layers"] else ()
    abstract = abstract_train_state(model, optimizer, shape, create_mesh(2), rules)
    return optimizer, create_train_state(model, optimizer, shape, seed, abstract)


@pytest.mark.slow
def test_fine_tunes_a_released_checkpoint_at_another_resolution():
    model = deep_model(64, layers=(1, 3))
    optimizer, state = state_of(model, 64)
    options = {**OPTIONS, "rules": FINE_TUNE_RULES, "raise_if_target_unmatched": False}
    state, _ = initialize(state, {**options, "prefix": str(RELEASED)})
    source, before = read_params(RELEASED), flat(state.params)
    np.testing.assert_array_equal(before[KERNEL], source[KERNEL])
    step = jax.jit(make_train_step(model, optimizer, loss={"name": "softmax_xent"}))
    batch = tiny.one_view_batch()
    batch["image"] = jax.image.resize(batch["image"], (16, 64, 64, 3), "bilinear")
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["total_loss"]))
    assert losses[-1] < losses[0]
    assert np.abs(flat(state.params)[KERNEL] - before[KERNEL]).max() > 0


@pytest.mark.slow
def test_an_upcycled_model_computes_what_the_dense_one_does(tmp_path):
    """With all experts selected, the copies of an MLP add up to the MLP."""
    dense = deep_model(32, layers=())
    _, dense_state = state_of(dense, 32, seed=1)
    write_params(tmp_path / "dense.safetensors", flat(dense_state.params))
    router = {
        "num_selected_experts": 4,
        "dispatcher": {"name": "gather", "capacity_factor": 4.0},
    }
    sparse = deep_model(32, layers=(1, 3), router=router)
    _, state = state_of(sparse, 32)
    options = {
        **OPTIONS,
        "rules": (("^(params/pre_logits/.*)$", r"\1"), *upcycling_rules((1, 3), 4)),
        "raise_if_target_unmatched": False,
        "prefix": str(tmp_path / "dense.safetensors"),
    }
    state, table = initialize(state, options)
    assert "8 expand_tile" in table
    images = tiny.one_view_batch()["image"]
    outputs = [
        jax.jit(model.clone(num_classes=None, deterministic=True).apply)(
            {"params": s.params}, images
        )[0]
        for model, s in ((dense, dense_state), (sparse, state))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_model_of_timm_fine_tunes_as_v_moe_with_prc_on_a_class_folder(three_steps, tmp_path):
    """By one command."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f"{i}.jpg"), pixels)
    arguments = f"dir={tmp_path},pretrained={TIMM},size=8,moe_layers=1,experts=4"
    splits = ("train", "test", "test_pairs")
    places = {f"dataset.{split}.data_dir": tmp_path / "data" for split in splits}
    workdir = three_steps(f"configs/folder_prc.py:{arguments}", **places)
    config = json.loads((workdir / "config.json").read_text())
    assert config["consistency"]["name"] == "prc"
    assert config["model"]["encoder"]["moe"]["num_experts"] == 4
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3 and 0 <= last["test_pairs/top1"] <= 1
    # Three steps have changed the first block of timm's model by little.
    name = "params/Encoder/encoderblock_0/LayerNorm_0/scale"
    start, trained = (read_params(str(place))[name] for place in (TIMM, workdir))
    assert 0 < np.abs(trained - start).max() < 0.1


def test_a_checkpoint_that_cannot_be_used(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    state = new_state(0)
    for name in ("missing", "empty", "missing.npz", "broken.npz", "missing.safetensors"):
        with pytest.raises(ConfigError, match=rf"config.initialization.prefix = .*{name}"):
            initialize(state, {**OPTIONS, "prefix": str(tmp_path / name)})


def their_optimizer(direction):
    """The parts of the released programs' optimisers, in their places."""
    return optax.chain(
        optax.identity(),
        optax.clip_by_global_norm(1.0),
        direction,
        optax.add_decayed_weights(0.1, mask={"head": {"kernel": True, "bias": False}}),
        optax.inject_hyperparams(lambda learning_rate: optax.scale(-learning_rate))(
            optax.linear_schedule(1e-2, 0.0, 8)
        ),
        optax.identity(),
    )


def write_orbax(path, state):
    with ocp.CheckpointManager(
        path / "ckpt", item_handlers={"state": ocp.PyTreeCheckpointHandler()}
    ) as manager:
        manager.save(3, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
    return path


def write_vmoe(path, state):
    vmoe_format.save(path / "ckpt_3", state, num_shards=2)
    return path / "ckpt_3"


OURS = {
    "adam": (optax.scale_by_adam(), {"name": "adam"}),
    "sgd": (optax.trace(0.9), {"name": "sgd", "momentum": 0.9}),
    "adafactor": (
        optax.chain(
            optax.scale_by_factored_rms(
                min_dim_size_to_factor=2,
                decay_rate_fn=lambda step, _: jnp.minimum(1 - (step + 1.0) ** -0.8, 0.999),
            ),
            optax.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16),
        ),
        {"name": "adafactor", "min_dim_size_to_factor": 2},
    ),
}


@pytest.mark.parametrize(
    ("write", "name"), [(write_vmoe, n) for n in OURS] + [(write_orbax, "adam")]
)
def test_continues_a_run_of_v_moe(write, name, tmp_path):
    """Three steps there and three here are six steps there."""
    rng = np.random.default_rng(0)
    gradients = [
        {"head": {"bias": rng.normal(size=3), "kernel": rng.normal(size=(4, 3))}} for _ in range(6)
    ]
    gradients = jax.tree.map(jnp.float32, gradients)
    direction, options = OURS[name]
    theirs = their_optimizer(direction)
    params = jax.tree.map(jnp.ones_like, gradients[0])
    opt_state = theirs.init(params)
    for step, gradient in enumerate(gradients):
        if step == 3:
            state = {"step": np.int32(3), "params": params, "opt_state": opt_state}
            prefix = write(tmp_path, jax.tree.map(np.asarray, state))
        updates, opt_state = theirs.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    rate = {"schedule": "warmup_linear_decay", "peak_value": 1e-2, "warmup_steps": 0}
    optimizer = create_optimizer(
        total_steps=8,
        learning_rate={**rate, "end_value": 0.0},
        weight_decay=[("kernel", 0.1)],
        gradient_clip={"global_norm": 1.0},
        **options,
    )
    fresh = jax.tree.map(jnp.zeros_like, params)
    state = TrainState(jnp.int32(0), fresh, optimizer.init(fresh), None, 0, 0)
    state, _ = initialize(state, {**OPTIONS, "prefix": str(prefix), "optimizer_state": True})
    assert int(state.step) == 3
    ours, opt_state = state.params, state.opt_state
    for gradient in gradients[3:]:
        updates, opt_state = optimizer.update(gradient, opt_state, ours)
        ours = optax.apply_updates(ours, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, params)


def test_an_optimiser_without_a_state_to_load(tmp_path):
    params = {"head": {"kernel": jnp.ones((4, 3))}}
    optimizer = create_optimizer(total_steps=8, name="adam", learning_rate=0.1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), None, 0, 0)
    options = {**OPTIONS, "prefix": str(tmp_path / "x"), "optimizer_state": True}
    vmoe_format.save(tmp_path / "x", {"params": params})
    with pytest.raises(ConfigError, match="holds no state of an optimiser"):
        initialize(state, options)
    momentum = {"2": {"trace": params}}
    vmoe_format.save(tmp_path / "x", {"params": params, "step": np.int32(3), "opt_state": momentum})
    with pytest.raises(ConfigError, match=r"needs 'mu' of 'head/kernel' of shape .*is nothing"):
        initialize(state, options)
    rules = [("^(.*)$", r"\1", "zoom")]
    with pytest.raises(ConfigError, match="needs the parameter 'head/kernel' to be copied"):
        initialize(state, {**options, "rules": rules})
