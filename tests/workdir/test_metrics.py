"""Metric files: what is written can be read, and survives kills and resumption."""

import json
import math
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from clu import metric_writers
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util.tensor_util import make_ndarray

from vmoe_prc.workdir import metrics, writers
from vmoe_prc.workdir.writers import JsonlWriter


def write_lines(path, *lines):
    path.write_text("".join(lines))


def test_scalars_reach_both_files(tmp_path):
    writer = writers.create_writer(tmp_path / "run")
    writer.write_scalars(10, {"train/loss": jnp.float32(0.5), "images": np.int64(7)})
    writer.write_scalars(20, {"train/loss": jnp.bfloat16(0.25), "images": 9})
    writer.close()

    first, second = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (first["step"], first["train/loss"], first["images"]) == (10, 0.5, 7)
    assert (second["step"], second["train/loss"]) == (20, 0.25)
    assert 0 < first["time"] <= second["time"]

    events = event_accumulator.EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0}
    ).Reload()
    logged = events.Tensors("train/loss")
    assert [event.step for event in logged] == [10, 20]
    assert [make_ndarray(event.tensor_proto) for event in logged] == [0.5, 0.25]


def test_images_reach_tensorboard_only(tmp_path):
    writer = writers.create_writer(tmp_path)
    writer.write_images(3, {"routing": np.zeros((4, 5, 3), np.uint8)})
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["tensors"] == ["routing"]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_processes_write_nothing(tmp_path):
    writer = writers.create_writer(tmp_path, process_index=1)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_writing_does_not_wait_for_values(tmp_path):
    arrived = threading.Event()

    class SlowValue:
        def __array__(self, dtype=None, copy=None):
            assert arrived.wait(30)
            return np.asarray(2.0, dtype)

    writer = metric_writers.AsyncWriter(JsonlWriter(tmp_path / "m.jsonl"))
    writer.write_scalars(1, {"loss": SlowValue()})  # would time out, were it to wait
    arrived.set()
    writer.close()
    assert metrics.read_metrics(tmp_path / "m.jsonl")[0]["loss"] == 2.0


def test_nan_and_infinities_are_valid_json(tmp_path):
    path = tmp_path / "m.jsonl"
    values = {"nan": jnp.nan, "up": np.float32(np.inf), "down": -math.inf}
    writer = JsonlWriter(path)
    writer.write_scalars(1, values)
    writer.close()

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert (record["nan"], record["up"], record["down"]) == ("NaN", "Infinity", "-Infinity")
    (read,) = metrics.read_metrics(path)
    assert math.isnan(read["nan"])
    assert (read["up"], read["down"]) == (math.inf, -math.inf)


def test_one_line_a_step(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.write_scalars(1, {"test/loss": 2.0})
    writer.write_scalars(2, {"train/loss": 3.0})
    writer.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (lines[0]["train/loss"], lines[0]["test/loss"]) == (1.0, 2.0)
    assert "test/loss" not in lines[1]


def test_steps_that_a_flush_split_are_read_as_one(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.flush()
    writer.write_scalars(1, {"test/loss": 2.0})
    writer.close()
    (read,) = metrics.read_metrics(path)
    assert (read["train/loss"], read["test/loss"]) == (1.0, 2.0)


def test_resuming_leaves_each_step_once(tmp_path):
    path = tmp_path / "m.jsonl"
    killed = JsonlWriter(path)
    for step in (10, 20, 30, 40):
        killed.write_scalars(step, {"loss": 1.0})
    killed.close()
    with path.open("a") as file:
        file.write('{"step": 50, "ti')  # killed in mid-write

    metrics.truncate_metrics(path, 20)
    resumed = JsonlWriter(path)
    for step in (30, 40):
        resumed.write_scalars(step, {"loss": 2.0})
    resumed.close()
    read = metrics.read_metrics(path)
    assert [(r["step"], r["loss"]) for r in read] == [(10, 1), (20, 1), (30, 2), (40, 2)]


@pytest.mark.parametrize("cut", range(1, 26))
def test_a_torn_line_is_repaired_wherever_it_was_cut(tmp_path, cut):
    path = tmp_path / "m.jsonl"
    whole = '{"step": 2, "loss": 0.25}\n'
    write_lines(path, '{"step": 1, "loss": 0.5}\n', whole[:cut])
    assert len(metrics.read_metrics(path)) == (2 if cut == 25 else 1)
    writer = JsonlWriter(path)
    writer.write_scalars(3, {"loss": 0.125})
    writer.close()
    steps = [r["step"] for r in metrics.read_metrics(path)]
    assert steps == ([1, 2, 3] if cut == 25 else [1, 3])


def test_starting_over_empties_the_file(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, '{"step": 0, "loss": 1.0}\n', '{"step": 5, "loss": 1.0}\n')
    metrics.truncate_metrics(path, -1)
    assert metrics.read_metrics(path) == []


def test_truncating_a_missing_file_creates_none(tmp_path):
    metrics.truncate_metrics(tmp_path / "m.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, '{"step": 1}\n', "nonsense\n", '{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2: not a metrics record: 'nonsense'"):
        metrics.read_metrics(path)


def test_only_scalars_are_metrics(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match=r"'loss' must be a scalar, but has shape \(2,\)"):
        writer.write_scalars(1, {"loss": np.zeros(2)})


def test_reading_needs_no_tensorflow():
    program = "import sys, vmoe_prc.workdir.metrics; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1, 2]\n", b"{}\n", b'{"step": true}\n'])
def test_lines_that_are_not_ours_are_named_and_stay(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    content = path.read_bytes()
    with pytest.raises(metrics.MetricsError, match=r"metrics\.jsonl"):
        metrics.truncate_metrics(path, 1)
    assert path.read_bytes() == content
