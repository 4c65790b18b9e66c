"""The jitted steps are compiled once, and the state is updated in place."""

import dataclasses
import math
import re

import jax
import pytest
from small_run import STEPS, small_config

from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.train import loop, program

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Names of the functions that were compiled since."""
    names = []

    def listen(event, duration, **details):
        if event == COMPILED:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_evaluation(
    compilations, digits_dir, tmp_path, monkeypatch
):
    """Every 2 steps all that a run does is done: report, evaluation, picture, checkpoint."""
    before_step = []

    def build_program(config, **options):
        built = program.build_program(config, **options)

        def train_step(state, batch):
            before_step.append(len(compilations))
            return built.train_step(state, batch)

        train_step.lower = built.train_step.lower
        return dataclasses.replace(built, train_step=train_step)

    monkeypatch.setattr(loop, "build_program", build_program)
    config = small_config(
        digits_dir, **{"evaluate.every_steps": 2, "save_checkpoint.every_steps": 2}
    )
    loop.train_and_evaluate(config, tmp_path)
    assert len(before_step) == STEPS
    # The batches of the two evaluation splits differ in shape.
    counts = {step: compilations.count(f"jit({step})") for step in ("train_step", "eval_step")}
    assert counts == {"train_step": 1, "eval_step": 2}
    after_first_round = before_step[2]
    assert compilations[after_first_round:] == []


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("dispatcher", ["gather", "dropless"])
@pytest.mark.parametrize(("num_devices", "partitions"), [(1, 1), (8, 4)])
def test_no_array_of_the_state_is_copied(
    dispatcher, num_devices, partitions, digits_dir, monkeypatch
):
    devices = jax.devices()[:num_devices]
    monkeypatch.setattr(program, "create_mesh", lambda size: create_mesh(size, devices))
    config = small_config(digits_dir, **{"num_expert_partitions": partitions, "ema_decay": 0.9})
    config.model.encoder.moe.router.dispatcher.name = dispatcher
    built = program.build_program(config)
    with jax.set_mesh(built.mesh):
        lowered = built.train_step.lower(built.abstract_state, dict(built.batch_spec))
        compiled = lowered.compile()
    on_device = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(built.abstract_state)
    )
    assert compiled.memory_analysis().alias_size_in_bytes == on_device
    # Parameters are named after our arguments: what XLA saves before it overwrites them.
    assert re.findall(r"= (\w+\[\d[\d,]*\])\S* copy\(%state", compiled.as_text()) == []


def test_a_user_is_told_that_many_blocks_compile_for_long(digits_dir, monkeypatch, caplog):
    config = small_config(digits_dir)
    program.build_program(config)
    assert "compiled one by one" not in caplog.text
    monkeypatch.setattr(program, "MANY_BLOCKS", 1)
    program.build_program(config)
    assert "num_layers = 2: blocks are compiled one by one" in caplog.text
