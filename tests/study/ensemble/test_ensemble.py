"""Ensembles: a member equals the same run alone."""

import numpy as np
import pytest

from vmoe_prc.study.ensemble import members, training
from vmoe_prc.study.ensemble.__main__ import run_stage

TASK = training.Task(side=16, hidden_size=16, moe_layers=(0,), num_experts=4, pairs=4, steps=4)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (200, 16, 16), np.uint8), rng.integers(0, 10, 200)


@pytest.mark.slow
def test_a_member_equals_the_same_run_alone(data):
    variants, seeds = [members.vmoe_by_batch(), members.prc_balanced()], [0, 3]
    together = training.stack_members(variants, seeds)
    create, advance = training.make_training(TASK, *data, chunk=4)
    alone = training.stack_members(variants[1:], seeds[1:])
    losses = []
    for chosen in (together, alone):
        state = create(chosen)
        # The second loss depends on what the first four steps have done to the parameters.
        state, first = advance(chosen, state, 0)
        _, second = advance(chosen, state, 4)
        losses.append((first["loss"][-1], second["loss"][-1]))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] != losses[0][1]


def test_variants_of_a_seed_start_equal_and_differ_after_training(data):
    together = training.stack_members([members.vmoe_by_group(), members.prc()], [5])
    create, advance = training.make_training(TASK, *data, chunk=4)
    state = create(together)
    kernel = np.asarray(
        state.params["Encoder"]["encoderblock_0"]["Moe"]["Router"]["dense"]["kernel"]
    )
    np.testing.assert_array_equal(kernel[0], kernel[1])
    state, _ = advance(together, state, 0)
    kernel = np.asarray(
        state.params["Encoder"]["encoderblock_0"]["Moe"]["Router"]["dense"]["kernel"]
    )
    assert np.abs(kernel[0] - kernel[1]).max() > 0


@pytest.mark.slow
def test_a_stage_reports_every_run(data):
    results = run_stage(TASK, [members.prc()], [0, 1], data, data, chunk=2, log=lambda _: None)
    assert [(r["variant"], r["seed"]) for r in results] == [("PRC", 0), ("PRC", 1)]
    for result in results:
        assert result["top1"] == pytest.approx(
            result["chance"] + result["image"] + result["place"], abs=1e-6
        )
        assert np.isfinite([v for v in result.values() if not isinstance(v, str)]).all()
