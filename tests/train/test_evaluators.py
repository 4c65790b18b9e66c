"""An evaluator from outside the package: one registered function, switched on by a config."""

import dataclasses

import jax
import numpy as np
from matplotlib.figure import Figure
from small_run import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.train import loop
from vmoe_prc.workdir.metrics import read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceOptions:
    split: str = option("test", "Split to evaluate.")
    percentile: float = option(help="Percentile of the confidence.", minimum=0, maximum=100)


@EVALUATORS.register("confidence", options=ConfidenceOptions)
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


def test_its_results_go_wherever_those_of_others_do(digits_dir, tmp_path):
    config = small_config(digits_dir, train_steps=2)
    config.evaluators = {
        "sure": {"name": "confidence", "every_steps": 1, "percentile": 5, "split": "test"}
    }
    summary = loop.train_and_evaluate(config, tmp_path)
    records = {m["step"]: m for m in read_metrics(tmp_path / "metrics.jsonl")}
    assert records[1]["sure/images"] == records[2]["sure/images"] == 359
    assert 0.1 <= records[2]["sure/low"] < 1
    assert "test/accuracy" in records[2] and "test/accuracy" not in records[1]
    assert f"sure/low     {records[2]['sure/low']:.4f}" in summary
    assert str(tmp_path / "sure-plot.png") in summary
    assert (tmp_path / "sure-plot.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Tensors("sure/plot")] == [1, 2]
