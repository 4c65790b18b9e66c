"""An evaluator from outside the package: one registered function, switched on by a config."""

import copy
import dataclasses
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from small_run import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.config import ConfigError
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.errors import PreemptedError, RunError
from vmoe_prc.train import loop
from vmoe_prc.train.program import build_program
from vmoe_prc.workdir.history import read_history
from vmoe_prc.workdir.metrics import read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceOptions:
    split: str = option("test", "Split to evaluate.")
    percentile: float = option(help="Percentile of the confidence.", minimum=0, maximum=100)


@EVALUATORS.register("percentile", options=ConfidenceOptions)
def confidence(context, *, split, percentile):
    @jax.jit
    def step(params, images):
        logits, _ = context.model.apply({"params": params}, images)
        return jax.nn.softmax(logits).max(axis=-1)

    def evaluate(params):
        batches = list(context.splits[split].batches())
        values = [np.asarray(step(params, b["image"]))[np.asarray(b["mask"])] for b in batches]
        values = np.concatenate(values)
        return {"images": len(values), "low": np.percentile(values, percentile), "plot": Figure}

    return evaluate


@pytest.mark.slow
def test_its_results_go_wherever_those_of_others_do(digits_dir, tmp_path):
    config = small_config(digits_dir, **{"evaluate.every_steps": 6})
    config.evaluators = {
        "sure": {"name": "percentile", "every_steps": 2, "percentile": 5, "split": "test"}
    }
    summary = loop.train_and_evaluate(config, tmp_path)
    records = {m["step"]: m for m in read_metrics(tmp_path / "metrics.jsonl")}
    assert records[2]["sure/images"] == records[6]["sure/images"] == 359
    assert 0.1 <= records[6]["sure/low"] < 1
    assert "test/accuracy" in records[6] and "test/accuracy" not in records[2]
    assert re.search(f"sure/low +{records[6]['sure/low']:.4f}\n", summary)
    assert str(tmp_path / "sure-plot.png") in summary
    assert (tmp_path / "sure-plot.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Tensors("sure/plot")] == [2, 4, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "percentil"}, "did you mean 'percentile'"),
        ({"percentil": 5}, "did you mean 'percentile'"),
        ({"percentile": 200}, "percentile = 200.0: expected float from 0 to 100"),
        ({"every_steps": 0}, "every_steps = 0: expected int of at least 1"),
    ],
)
def test_a_mistake_in_its_section_is_named(changes, message, digits_dir, tmp_path):
    config = small_config(digits_dir)
    section = {"name": "percentile", "every_steps": 1, "percentile": 5}
    config.evaluators = {"sure": section | changes}
    with pytest.raises(ConfigError, match=rf"config.evaluators.sure.*{message}"):
        loop.train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@EVALUATORS.register("interrupter")
def interrupter(context):
    def evaluate(params):
        # During the first evaluation: a terminal to all its processes, a study to its child.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return {}

    return evaluate


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_the_run_resumes(digits_dir, tmp_path):
    config = small_config(digits_dir, **{"evaluate.every_steps": 6})
    config.evaluators = {"key": {"name": "interrupter", "every_steps": 1}}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(PreemptedError, match="preempted: checkpoint saved at step 1; run the same"):
        loop.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "checkpoints" / "1").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    log = (tmp_path / "train-0.log").read_text()
    assert "a checkpoint will be saved" in log and "in _train" in log and "PreemptedError" in log
    config.evaluators = {}
    assert "accuracy" in loop.train_and_evaluate(config, tmp_path)
    stretches = read_history(epath.Path(tmp_path))
    assert [len(stretch.config["evaluators"]) for stretch in stretches] == [1, 0]


@EVALUATORS.register("interrupter_between_batches")
def interrupter_between_batches(context):
    def evaluate(params):
        batches = context.splits["test"].batches()
        next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        next(batches)
        raise AssertionError("the evaluation continues")

    return evaluate


@pytest.mark.slow
def test_a_notice_ends_an_evaluation_which_is_made_again(finished, digits_dir, tmp_path):
    config = small_config(digits_dir)
    for step in (4, 6):
        # It comes after the evaluation of the splits, whose results are lost.
        interrupted = copy.deepcopy(config)
        key = {"name": "interrupter_between_batches", "every_steps": step}
        interrupted.evaluators = {"key": key}
        with pytest.raises(PreemptedError, match=f"checkpoint saved at step {step};"):
            loop.train_and_evaluate(interrupted, tmp_path)
        assert (tmp_path / "checkpoints" / str(step)).exists()
    loop.train_and_evaluate(config, tmp_path)
    resumed, undisturbed = (
        {
            record["step"]: {k: v for k, v in record.items() if k.startswith("test")}
            for record in read_metrics(workdir / "metrics.jsonl")
        }
        for workdir in (tmp_path, finished[0])
    )
    assert resumed == undisturbed and "test/accuracy" in resumed[4]


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_neither_evaluated_nor_saved(digits_dir, tmp_path):
    config = small_config(digits_dir)
    program = build_program(config)
    state = program.create_state()
    with Checkpointer(tmp_path / "never" / "checkpoints") as checkpointer:
        never = state.replace(step=state.step + 6, skipped_steps=state.skipped_steps + 6)
        checkpointer.save(6, never)
    with pytest.raises(RunError, match="none of the 6 steps has made an update"):
        loop.train_and_evaluate(config, tmp_path / "never")
    state.params["head"]["bias"] = state.params["head"]["bias"].at[0].set(jnp.nan)
    for step in (5, 6):  # The run continues from 5, and from 6 it would only evaluate.
        workdir = tmp_path / str(step)
        with Checkpointer(workdir / "checkpoints") as checkpointer:
            checkpointer.save(step, state.replace(step=state.step + step))
        with pytest.raises(RunError, match=r"after step 6 are not finite \(params/head/bias\)"):
            loop.train_and_evaluate(config, workdir)
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(step)]
        assert not (workdir / "summary.txt").exists()
