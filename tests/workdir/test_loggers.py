"""Weights & Biases and MLflow, each with its offline store, and loggers of one's own."""

import sys
import time

import numpy as np
import pytest
from etils import epath

from vmoe_prc.config.registry import LOGGERS
from vmoe_prc.runtime.programs import run_program
from vmoe_prc.workdir import writers
from vmoe_prc.workdir.loggers import RunInfo

PICTURE = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def run_info(tmp_path, label):
    return RunInfo(label, epath.Path(tmp_path), {"description": "tiny", "seed": 3})


def write(tmp_path, logger, step):
    writer = writers.create_writer(tmp_path, loggers=[logger])
    writer.write_scalars(step, {"train/loss": np.float32(0.5), "test/accuracy": 0.25 * step})
    writer.write_images(step, {"routing": PICTURE[None]})
    writer.flush()
    writer.close()


def test_scalars_and_images_reach_a_logger(tmp_path):
    calls = []

    class Logger:
        def scalars(self, step, values):
            calls.append((step, values))

        def image(self, step, name, pixels):
            calls.append((step, name, pixels.shape))

        def close(self):
            calls.append("closed")

    write(tmp_path, Logger(), 2)
    values = {"train/loss": 0.5, "test/accuracy": 0.5}
    assert calls == [(2, values), (2, "routing", (4, 5, 3)), "closed"]
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    options = {"project": "p", "entity": None} if name == "wandb" else {"experiment": "p"}
    assert run_program(lambda: LOGGERS[name](run_info(tmp_path, name), **options)) == 2
    assert capsys.readouterr().err == (
        f'error: {name} is not installed: pip install "vmoe_prc[{name}]"\n'
    )


@pytest.mark.slow
def test_mlflow_continues_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (1, 2):
        logger = LOGGERS["mlflow"](run_info(tmp_path, "mlflow"), experiment="photos")
        write(tmp_path, logger, step)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("photos")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["test/accuracy"] == 0.5
    history = client.get_metric_history(run.info.run_id, "test/accuracy")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.25), (2, 0.5)]
    files = [file.path for file in client.list_artifacts(run.info.run_id, "routing")]
    assert files == ["routing/1.png", "routing/2.png"]


@pytest.mark.slow
def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = {"project": "photos", "entity": None}
    write(tmp_path, LOGGERS["wandb"](run_info(tmp_path, "wandb"), **options), 2)
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stem == f"run-{(tmp_path / 'wandb-run.txt').read_text()}"
    # A process of wandb writes the last lines, soon after the run is finished.
    deadline = time.monotonic() + 20
    while b"test/accuracy" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"test/accuracy" in file.read_bytes() and b"photos" in file.read_bytes()
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/routing*.png"))
