"""Ensembles: a member equals the same run alone."""

import dataclasses
import json

import numpy as np
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.study.ensemble import members, training
from vmoe_prc.study.ensemble.__main__ import main, run_stage

TASK = training.Task(side=16, hidden_size=16, moe_layers=(0,), num_experts=4, pairs=4, steps=4)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (200, 16, 16), np.uint8), rng.integers(0, 10, 200)


@pytest.mark.slow
def test_a_member_equals_the_same_run_alone(data):
    variants = [members.vmoe_by_batch(), members.prc_balanced()]
    runs = [(variant, seed) for variant in variants for seed in (0, 3)]
    dropless = dataclasses.replace(TASK, dispatcher="dropless")
    losses = []
    for task, part in ((TASK, runs), (TASK, runs[3:]), (dropless, runs[3:])):
        terms = members.used_terms([variant for variant, _ in part])
        create, advance = training.make_training(task, *data, chunk=4, terms=terms)
        chosen = training.stack_members(part, terms)
        state = create(chosen)
        # The second loss depends on what the first four steps have done to the parameters.
        state, first = advance(chosen, state, 0)
        _, second = advance(chosen, state, 4)
        losses.append((first["loss"][-1], second["loss"][-1]))
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)
    assert losses[0][0] != losses[0][1]


@pytest.mark.slow
def test_variants_of_a_seed_start_equal_and_differ_after_training(data):
    together = training.stack_members([(members.vmoe_by_group(), 5), (members.prc(), 5)])
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
@pytest.mark.parametrize(("at_once", "parts"), [(None, 1), (1, 2)])
def test_a_stage_adds_the_runs_that_are_missing(data, tmp_path, at_once, parts):
    path, stage = tmp_path / "main.jsonl", ([members.prc(), members.vmoe_by_batch()], range(2))
    options = {"at_once": at_once, "chunk": 2, "log": lambda _: None}
    earlier = {"stage": "main", "variant": "PRC", "seed": 0, "steps": 4, "k": 1, "accuracy": 0.5}
    path.write_text(json.dumps(earlier) + "\n")
    for i in range(parts):
        run_stage(path, TASK, *stage, data, data, part=(i + 1, parts), **options)
    first, *results = map(json.loads, path.read_text().splitlines())
    assert first == earlier
    names = [(r["variant"], r["seed"]) for r in results]
    missing = [("V-MoE, batch balance", 0), ("PRC", 1), ("V-MoE, batch balance", 1)]
    assert names == (missing if parts == 1 else [missing[1], missing[0], missing[2]])
    for result in results:
        assert result["top1"] == pytest.approx(
            result["chance"] + result["image"] + result["place"], abs=1e-6
        )
        assert np.isfinite([v for v in result.values() if not isinstance(v, str)]).all()
    run_stage(path, TASK, *stage, data, data, **options)
    assert len(path.read_text().splitlines()) == 4


def test_runs_of_a_trial_are_not_taken_for_runs_of_the_stage(data, tmp_path):
    path, line = tmp_path / "main.jsonl", {"variant": "PRC", "seed": 0, "steps": 2, "k": 1}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=r"--out = .*has runs of 2 steps with k = 1, not of 4"):
        run_stage(path, TASK, [members.prc()], range(1), data, data)
    assert json.loads(path.read_text()) == line


def test_mistakes_are_one_line(tmp_path, capsys):
    study = tmp_path / "study.py"
    study.write_text("STAGES = {'main': None}")
    arguments = [f"--study={study}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert main([*arguments, "--stage=all"]) == 2
    assert "--stage = 'all': expected one of main" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--stage=main", "--at-once=0"])
    with pytest.raises(SystemExit):
        main([*arguments, "--stage=main", "--part=3/2"])
    assert "--part: 3/2: expected I/N with I from 1 to N" in capsys.readouterr().err
