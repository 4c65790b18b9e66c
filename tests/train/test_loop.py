"""Whole runs of a small model on the real digits: files, resuming, devices, errors."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_run import STEPS, small_config

from configs import imagenet_prc
from vmoe_prc.checkpoints.manager import restore_part
from vmoe_prc.config import ConfigError
from vmoe_prc.data import pipeline
from vmoe_prc.data.split import open_split
from vmoe_prc.errors import RunError
from vmoe_prc.recipes import fewshot
from vmoe_prc.train import loop
from vmoe_prc.train.program import build_program
from vmoe_prc.workdir.metrics import read_metrics


def test_a_run_leaves_everything_behind(finished):
    workdir, summary = finished
    for name in ("checkpoints/6", "tensorboard", "metrics.jsonl", "routing.png"):
        assert (workdir / name).exists()
        assert str(workdir / name) in summary
    assert (workdir / "summary.txt").read_text() == summary + "\n"
    assert (workdir / "routing.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((workdir / "config.json").read_text())
    assert config["train_steps"] == STEPS
    for word in ("encoderblock_1", "top-1", "top-2", "dropped", "accuracy"):
        assert word in summary


def test_metrics_of_a_run(finished):
    workdir, _ = finished
    metrics = {m["step"]: m for m in read_metrics(workdir / "metrics.jsonl")}
    assert sorted(metrics) == [2, 4, 6]
    assert metrics[2]["train/total_loss"] == pytest.approx(
        metrics[2]["train/main_loss"] + metrics[2]["train/auxiliary_loss"]
    )
    assert metrics[2]["train/learning_rate"] == pytest.approx(2e-3)
    assert metrics[4]["speed/views_per_second"] > 0
    last = metrics[6]
    assert last["test/images"] == 359
    assert last["test_pairs/images"] == 2 * 359
    assert sum(last[f"test/encoderblock_1/load/{e}"] for e in range(4)) == pytest.approx(1)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, digits_dir, tmp_path):
    workdir, summary = finished
    # As a kill after step 5 leaves it: a checkpoint of step 3, metrics up to step 5.
    shutil.copytree(workdir / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    resumed = loop.train_and_evaluate(small_config(digits_dir), tmp_path)
    assert resumed.replace(str(tmp_path), str(workdir)) == summary
    for name in ("params", "opt_state"):
        expected = restore_part(workdir / "checkpoints", name=name)
        actual = restore_part(tmp_path / "checkpoints", name=name)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    timeless = [
        {k: v for k, v in m.items() if k != "time" and not k.startswith("speed/")}
        for path in (workdir, tmp_path)
        for m in read_metrics(path / "metrics.jsonl")
    ]
    assert timeless[: len(timeless) // 2] == timeless[len(timeless) // 2 :]


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated_again(finished, digits_dir, tmp_path):
    workdir, summary = finished
    shutil.copytree(workdir, tmp_path / "copy")
    again = loop.train_and_evaluate(small_config(digits_dir), tmp_path / "copy")
    assert again.replace(str(tmp_path / "copy"), str(workdir)) == summary


@pytest.mark.slow
def test_parameters_over_devices_give_the_same_run(finished, digits_dir, tmp_path):
    workdir, _ = finished
    config = small_config(digits_dir, num_expert_partitions=2, shard_dense_params=True)
    loop.train_and_evaluate(config, tmp_path)
    expected, actual = (read_metrics(path / "metrics.jsonl")[-1] for path in (workdir, tmp_path))
    for name in ("train/total_loss", "test/loss", "train/encoderblock_1/num_pairs"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (
            "k=1,prc=off",
            {
                "mixup": {"concentration": 0.2},
                "ema_decay": 0.5,
                "profile": {"first_profile": 2, "num_profile_steps": 2},
            },
        ),
        (
            "",
            {
                "microsteps": 2,
                "save_checkpoint.keep_best": 1,
                "save_checkpoint.best_metric": "test/accuracy",
            },
        ),
    ],
)
def test_other_ways_to_train(digits_dir, tmp_path, arguments, changes):
    config = small_config(digits_dir, arguments)
    with config.unlocked():
        config.update({k: v for k, v in changes.items() if "." not in k})
        config.update_from_flattened_dict({k: v for k, v in changes.items() if "." in k})
    summary = loop.train_and_evaluate(config, tmp_path)
    assert ("top-2" in summary) == (arguments == "")
    traces = list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))
    assert len(traces) == ("profile" in changes)


def test_another_model_in_the_work_directory_is_an_error(finished, digits_dir, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "copy")
    config = small_config(digits_dir)
    config.model.hidden_size = 32
    with pytest.raises(ValueError, match=r"does not fit the configuration: .* is of shape"):
        loop.train_and_evaluate(config, tmp_path / "copy")
    assert (tmp_path / "copy" / "checkpoints" / "6").exists()
    kept = (tmp_path / "copy" / "config.json").read_text()
    assert kept == (workdir / "config.json").read_text()
    data = json.loads((workdir / "data.json").read_text())
    data["test"]["classes"] = data["test"]["classes"][::-1]
    (tmp_path / "copy" / "data.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"config.dataset.test.name = .*order has changed"):
        loop.train_and_evaluate(small_config(digits_dir), tmp_path / "copy")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_expert_partitions", 16, "must divide config.model.encoder.moe.num_experts = 4"),
        ("model.encoder.moe.num_experts", 5, "num_expert_partitions = 2: must divide"),
        ("dataset.train.batch_size", 12, "must be a multiple of 8 devices"),
        ("model.encoder.moe.group_size", 33, "group_size = 33: must divide the tokens"),
        ("model.patch_size", (5, 5), "must divide the 32x32 images"),
        ("dataset.test.name", "digitz", "did you mean 'digits'"),
        ("dataset.test.split", "val", "no such split; allowed: train .1,438 examples., test"),
        ("optimizer.learning_rate.warmup_steps", 6, "warmup_steps = 6 must be less than the 6"),
        (
            "initialization.prefix",
            "None",
            "prefix = '.*/None': .*/None: not a run's work directory",
        ),
        ("initialization.prefix", "x.npz", r"prefix = '.*/x.npz': .*/x.npz: no such file"),
    ],
)
def test_errors_before_anything_is_written(digits_dir, tmp_path, field, value, message):
    config = small_config(digits_dir, **{"num_expert_partitions": 2})
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=message):
        loop.train_and_evaluate(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_imagenet_recipe_compiles(data_dir):
    """On images of another data set and fewer at a time; all else is the recipe's."""
    config = imagenet_prc.get_config()
    with config.unlocked():
        for dataset in config.dataset.values():
            dataset.update({"name": "tiny_jpegs", "data_dir": data_dir, "batch_size": 64})
            dataset.split = "train" if dataset.split.startswith("train") else "test"
        config.train_epochs = 100_000
    program = build_program(config)
    batch = program.batch_spec
    assert batch["image"].shape == (64, 2, 224, 224, 3)
    with jax.set_mesh(program.mesh):
        compiled = program.train_step.lower(program.abstract_state, dict(batch)).compile()
    counted = program.flops_per_step / jax.device_count()
    # Buffers with room to spare, and the parts that are not matrix products.
    assert counted < compiled.cost_analysis()["flops"] < 1.5 * counted


@pytest.mark.slow
def test_fewshot_accuracies_are_reported(tmp_path, digits_dir):
    config = small_config(digits_dir, "prc=off")
    with config.unlocked():
        datasets = {"numbers": ("digits", "train[:50%]", "train[50%:]", "test")}
        config.fewshot = {**fewshot(datasets, 32, 64), "shots": (1, 5), "data_dir": digits_dir}
    summary = loop.train_and_evaluate(config, tmp_path)
    assert "1-shot" in summary and "numbers" in summary
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    # Even an untrained network tells some digits apart.
    assert 0.1 < last["fewshot/numbers/5shot"] <= 1
    assert last["fewshot/numbers/5shot_l2"] > 0


def test_a_fewshot_data_set_that_does_not_exist(tmp_path, digits_dir):
    config = small_config(digits_dir, "prc=off")
    with config.unlocked():
        config.fewshot = fewshot({"x": ("digitz", "train", "train", "test")}, 32, 64)
    with pytest.raises(ConfigError, match=r"config\.fewshot\.datasets\.x.*digitz"):
        loop.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
def test_steps_that_are_not_finite_end_the_run_with_batch_and_names(digits_dir, tmp_path):
    config = small_config(digits_dir, "prc=off")
    # The rates are 0, 1e15, ...: from the third step on the activations overflow.
    config.optimizer.learning_rate.peak_value = 2e15
    config.optimizer.weight_decay = None
    config.max_skipped_steps = 2
    with pytest.raises(RunError, match="2 steps in a row, up to step 4, had a loss or grad"):
        loop.train_and_evaluate(config, tmp_path)
    folder = tmp_path / "non_finite" / "step_4"
    report = json.loads((folder / "report.json").read_text())
    assert report["step"] == 4
    assert "Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel" in report["parameters"]
    batches = pipeline.train_batches(
        open_split(config.dataset.train), seed=config.seed, start_step=3
    )
    expected = next(batches)
    with np.load(folder / "batch_0.npz") as saved:
        assert saved.files == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(saved[name], value)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (last["step"], last["train/skipped_steps"]) == (2, 0)
    # What is saved is what it was before.
    assert np.isfinite(restore_part(tmp_path / "checkpoints")["head"]["kernel"]).all()
