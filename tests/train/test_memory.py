"""Sizes are compared with the memory, and with each other, before anything of them is made."""

import jax
import jax.numpy as jnp
import pytest
from small_run import small_config

from vmoe_prc.config import ConfigError, check_batch, complete, override
from vmoe_prc.runtime import memory
from vmoe_prc.runtime.memory import device_memory
from vmoe_prc.runtime.mesh import create_mesh, replicated
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.memory import check_state_fits
from vmoe_prc.train.program import build_program


def state(num_floats, sharding):
    array = jax.ShapeDtypeStruct((num_floats,), jnp.float32, sharding=sharding)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(sharding.mesh))
    return TrainState(
        step=step,
        params={"a": array},
        opt_state=(),
        ema_params=None,
        skipped_steps=step,
        skipped_in_a_row=step,
    )


def test_a_state_with_its_gradients_has_to_fit():
    mesh = create_mesh(1)
    fits = device_memory(jax.devices()) // (2 * 4)
    check_state_fits(state(fits - 100, replicated(mesh)), jax.devices())
    with pytest.raises(ConfigError, match=r"config.model = '[\d,]+ parameters': .* GiB per device"):
        check_state_fits(state(fits + 100, replicated(mesh)), jax.devices())


def test_a_device_has_to_hold_its_part_only():
    mesh = create_mesh(8)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("expert"))
    check_state_fits(state(device_memory(jax.devices()) // 16 * 8, split), jax.devices())


def test_a_model_as_wide_as_the_schema_allows_is_refused_at_once(digits_dir):
    """Creating its state took 37 minutes before it was compared with the memory."""
    wide = {"hidden_size": 10_000_000, "encoder": {"mlp_dim": 10_000_000}}
    with pytest.raises(ConfigError, match="choose a smaller model"):
        build_program(complete(override(small_config(digits_dir), {"model": wide})))


def test_an_array_of_a_step_has_to_fit(digits_dir, monkeypatch):
    """The weights of wide experts fit, and their hidden layer for all tokens does not."""
    monkeypatch.setattr(memory, "host_memory", lambda: 2**30)
    wide = {"num_expert_partitions": 4, "model": {"encoder": {"moe": {"mlp_dim": 100_000}}}}
    with pytest.raises(ConfigError, match=r"a step with an array of shape \(.*100000\)': it needs"):
        build_program(complete(override(small_config(digits_dir), wide)))


def test_a_batch_has_to_fit(digits_dir):
    batch = "config.dataset.{}.batch_size = 2147483640: the images of a batch need .* GiB"
    for split in ("train", "test"):
        changes = {"dataset": {split: {"batch_size": 2**31 - 8}}}
        with pytest.raises(ConfigError, match=batch.format(split)):
            build_program(complete(override(small_config(digits_dir), changes)))
    config = complete(small_config(digits_dir))
    images = (2**20, 2, 32, 32, 3)  # 24 GiB, which some hosts have; 2^25 tokens of 64 experts.
    with config.unlocked():
        config.model.encoder.moe.num_experts = 64
    with pytest.raises(ConfigError, match="2,097,152 images of 17 tokens are more than fit a step"):
        check_batch(config, "dataset.train", images, 8)


def test_evaluation_may_not_change_the_parameters(digits_dir):
    overrides = {"evaluate": {"model_overrides": {"hidden_size": 32}}}
    config = complete(override(small_config(digits_dir), overrides))
    with pytest.raises(ConfigError, match=r"model_overrides = .*: must not change parameters: "):
        build_program(config)
