"""Every benchmark runs at a tiny size and writes what it says; no time is asserted."""

import importlib.util
import json
import math
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import all as all_benchmarks
from benchmarks import (
    evaluation,
    exports,
    grouped_product,
    inference,
    input_pipeline,
    memory,
    moe_layer,
    prc_cost,
    startup,
    train_step,
    training_memory,
    worker_processes,
)
from vmoe_prc import recipes

TINY = "ViT-Ti/32, E=2, K=2, Last 1"
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """ViT-Ti of two blocks, the second with experts."""
    monkeypatch.setitem(recipes.SIZES, "Ti", (2, 16, 32, 2))


@pytest.fixture
def run(tmp_path):
    """Runs a benchmark and returns the rows it wrote, all of whose figures are finite."""

    def run(main, *flags):
        path = tmp_path / "out.json"
        main(["--repetitions=1", f"--output={path}", *flags])
        rows = json.loads(path.read_text())["rows"]
        for value in (value for row in rows for value in row.values()):
            assert not isinstance(value, float) or math.isfinite(value)
        return rows

    return run


def test_train_step(run):
    flags = "--model=ViT-Ti/32, E=4", "--image-sizes=64", "--batch-size=8", "--k=2"
    dense, *sparse = run(train_step.main, *flags, "--methods=gather")
    assert dense["arm"] == "dense"
    assert dense["to_dense"] == dense["flops"] == 1
    assert [row["arm"] for row in sparse] == ["V-MoE k=2 gather", "PRC k=2 gather"]
    assert all(row["flops"] > 1 and row["to_padded"] < row["to_ideal"] for row in sparse)


def test_exports(run):
    jax, *others = run(exports.main, f"--model={TINY}", "--image-size=64", "--batch-sizes=2")
    assert jax["arm"] == "jax" and jax["to_jax"] == 1
    assert [row["arm"] for row in others] == ["stablehlo", "saved_model", "onnx", "dense"]
    assert all(row["megabytes"] > 0 for row in others)
    # As many active parameters, up to the rounding of a width.
    assert others[-1]["active"] == pytest.approx(jax["active"], abs=2 * (2 * 16 + 1))


def test_moe_layer(run):
    flags = "--group-sizes=16", "--experts=2", "--k=2", "--tokens=32", "--width=8", "--mlp-dim=16"
    rows = run(moe_layer.main, *flags, "--methods=einsum")
    assert [row["method"] for row in rows] == ["one MLP", "products", "experts", "einsum"]
    assert rows[0]["to_mlp"] == rows[1]["to_products"] == rows[2]["to_experts"] == 1


def test_grouped_product(run):
    flags = "--rows=24", "--groups=3", "--width=8", "--out-width=16"
    rows = run(grouped_product.main, *flags)
    assert [row["product"] for row in rows] == [
        "batched",
        "ragged_dot, even",
        "ragged_dot, skewed",
        "in_tiles, even",
        "in_tiles, skewed",
    ]
    assert rows[0]["ratio"] == 1
    assert list(grouped_product.skewed(24, 3)) == [12, 6, 6]


def test_prc_cost(run):
    rows = run(prc_cost.main, f"--model={TINY}", "--image-sizes=64", "--batch-size=8")
    assert [row["arm"] for row in rows] == ["V-MoE", "PRC"]


def test_memory(run):
    flags = f"--model={TINY}", "--image-sizes=64", "--batch-size=8", "--methods=einsum"
    dense, sparse, _ = run(memory.main, *flags)
    assert dense["donated"] == sparse["donated"] == 1
    assert sparse["step_peak_mib"] > dense["step_peak_mib"] > dense["state_mib"]
    assert sparse["state_mib"] > dense["state_mib"]


def test_inference(run):
    flags = f"--model={TINY}", "--image-sizes=64", "--batch-sizes=1,8", "--methods=gather"
    rows = run(inference.main, *flags)
    assert [(row["batch"], row["arm"]) for row in rows] == [
        (1, "dense"),
        (1, "gather"),
        (8, "dense"),
        (8, "gather"),
    ]


def test_evaluation(run):
    flags = f"--model={TINY}", "--image-size=64", "--batch-size=8"
    rows = run(evaluation.main, *flags)
    assert rows[0]["pass"] == "forward"
    assert len(rows) == 5


def test_input_pipeline(run, monkeypatch):
    monkeypatch.setattr(input_pipeline, "NUM_PHOTOGRAPHS", 4)
    rows = run(input_pipeline.main, "--batches=1", "--batch-size=2")
    assert [row["stage"] for row in rows] == ["decode", *input_pipeline.STAGES]
    assert rows[0]["% of decoding"] == rows[0]["% of decoding, CPU"] == 100
    assert all(row["images/s"] > 0 for row in rows)


@pytest.mark.usefixtures("programs_on_one_device")
def test_worker_processes(run, monkeypatch, capsys):
    monkeypatch.setattr(input_pipeline, "NUM_PHOTOGRAPHS", 4)
    flags = "--workers=1", "--batches=2", "--batch-size=2", "--examples=640"
    [row] = run(worker_processes.main, *flags)
    assert row["batches"] == 3 * 640 // 64 - worker_processes.WARM_UP
    assert row["batches at ends"] == 4
    assert len(row["memory, MB"].split()) == len(row["with shared, MB"].split()) == 3
    assert "was killed by SIGKILL" in capsys.readouterr().out


@pytest.mark.usefixtures("programs_on_one_device")
def test_training_memory(run):
    [row] = run(training_memory.main, "--epochs=2")
    assert row["epoch"] == 2 and row["to epoch 2"] == 1
    assert row["with shared, MB"] >= row["own, MB"] > 100 and row["workers, MB"] == 0


def test_photographs_are_of_the_size_they_claim():
    encoded = input_pipeline.encode(input_pipeline.photograph(np.random.default_rng(0)))
    assert 0.85 * input_pipeline.JPEG_BYTES < len(encoded) <= input_pipeline.JPEG_BYTES
    assert tf.io.decode_jpeg(encoded).shape == (375, 500, 3)


@pytest.mark.usefixtures("programs_on_one_device")
def test_startup(run, monkeypatch):
    for code in startup.IMPORTS.values():
        exec(code)  # Loaded already: processes would take seconds.
    monkeypatch.setattr(startup, "IMPORTS", {startup.BASELINE: startup.IMPORTS[startup.BASELINE]})
    flags = f"--model={TINY}", "--image-size=64", "--batch-size=8"
    rows = {row["phase"]: row for row in run(startup.main, *flags)}
    assert rows["import jax"]["over_jax"] == 0 and "main --help" in rows
    phases = "import", "parameters", "compile the step", "first step"
    assert {f"{phase}, {cache}" for phase in phases for cache in ("cold", "warm")} < set(rows)


def test_all_runs_what_it_is_asked_for(monkeypatch, tmp_path):
    commands = []

    def fake_run(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, int("memory" in command[2]))

    monkeypatch.setattr(all_benchmarks.subprocess, "run", fake_run)
    assert all_benchmarks.main([f"--output={tmp_path}", "--only=prc_cost"]) == 0
    assert commands[0][1:] == ["-m", "benchmarks.prc_cost", f"--output={tmp_path}/prc_cost.json"]
    assert all_benchmarks.main([f"--output={tmp_path}"]) == 1
    modules = [command[2].removeprefix("benchmarks.") for command in commands[1:]]
    assert modules == list(all_benchmarks.NAMES)
    assert all(importlib.util.find_spec(f"benchmarks.{name}") for name in modules)
