"""Runs that start from the parameters of another run or file."""

import flax.traverse_util
import jax
import numpy as np
import pytest
import tiny

from vmoe_prc.checkpoints.orbax import Checkpointer
from vmoe_prc.config import ConfigError
from vmoe_prc.initialization import initialize, read_params
from vmoe_prc.mesh import create_mesh
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.recipes import FINE_TUNE_RULES
from vmoe_prc.train_state import abstract_train_state, create_train_state

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


def test_starts_from_a_run_on_another_mesh(tmp_path):
    workdir = save(new_state(1, experts=4), tmp_path)
    before = new_state(2)
    state, table = initialize(before, {**OPTIONS, "prefix": str(workdir)})
    for name, x in flat(new_state(1).params).items():
        np.testing.assert_array_equal(flat(state.params)[name], x)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, before)
    assert int(state.step) == 0
    assert table.splitlines()[-1] == f"{len(flat(before.params))} loaded"


def test_the_average_is_what_another_run_starts_from(tmp_path):
    saved = new_state(1, use_ema=True)
    saved = saved.replace(ema_params=jax.tree.map(lambda x: x + 1, saved.params))
    state, _ = initialize(
        new_state(2, use_ema=True), {**OPTIONS, "prefix": str(save(saved, tmp_path))}
    )
    for tree in (state.params, state.ema_params):
        for name, x in flat(saved.ema_params).items():
            np.testing.assert_array_equal(flat(tree)[name], x)


def test_fine_tunes_at_another_resolution_with_a_new_head(tmp_path):
    workdir = save(new_state(1), tmp_path)
    before = new_state(2, image_size=64)
    options = {**OPTIONS, "rules": FINE_TUNE_RULES, "raise_if_target_unmatched": False}
    state, table = initialize(before, {**options, "prefix": str(workdir)})
    source, old, new = flat(new_state(1).params), flat(before.params), flat(state.params)
    kernel = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    np.testing.assert_array_equal(new[kernel], source[kernel])
    np.testing.assert_array_equal(new["params/head/kernel"], old["params/head/kernel"])
    embedding = "params/Encoder/posembed_input/pos_embedding"
    assert new[embedding].shape == (1, 65, 32)
    np.testing.assert_array_equal(new[embedding][:, 0], source[embedding][:, 0])
    assert "1 vit_zoom" in table and "2 new" in table and "2 unused" in table


def test_reads_npz_files_with_and_without_a_level_of_parameters(tmp_path):
    x = np.arange(3.0)
    np.savez(tmp_path / "plain.npz", **{"head/kernel": x})
    np.savez(tmp_path / "nested.npz", **{"params/head/kernel": x, "step": 1})
    for name in ("plain.npz", "nested.npz"):
        params = read_params(tmp_path / name)
        assert list(params) == ["params/head/kernel"]
        np.testing.assert_array_equal(params["params/head/kernel"], x)


def test_a_checkpoint_that_cannot_be_used(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty", "missing.npz", "broken.npz"):
        with pytest.raises(ConfigError, match=rf"config.initialization.prefix = .*{name}"):
            initialize(new_state(0), {**OPTIONS, "prefix": str(tmp_path / name)})
