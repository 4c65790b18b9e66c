"""Runs of several real processes, with collectives between them, against one process."""

import shutil
import signal
import time

import jax
import numpy as np
import pytest
from several_processes import ended, start_processes
from small_run import small_config

from vmoe_prc.checkpoints.manager import restore_part
from vmoe_prc.errors import PREEMPTED_STATUS
from vmoe_prc.train import loop
from vmoe_prc.workdir.metrics import read_metrics

pytestmark = pytest.mark.slow


RECIPE = """
import os, pathlib
from small_run import small_config
from vmoe_prc.config import NotPreparedError

PREPARED = pathlib.Path(__file__).with_name("prepared")


def prepare():
    with PREPARED.open("a") as file:
        print(os.getpid(), file=file)


def get_config(arguments):
    if not PREPARED.exists():
        raise NotPreparedError("config argument 'dataset'", "digits", "is not prepared", prepare)
    return small_config({digits_dir!r})
"""


@pytest.fixture
def config_file(tmp_path, digits_dir):
    """A recipe that is the configuration of `finished`, and looks at data to be prepared."""
    path = tmp_path / "config.py"
    path.write_text(RECIPE.replace("{digits_dir!r}", repr(digits_dir)))
    return path


def assert_same_run(workdir, finished):
    expected, actual = (
        {m["step"]: m for m in read_metrics(w / "metrics.jsonl")} for w in (finished, workdir)
    )
    assert actual.keys() == expected.keys()
    for step, metrics in expected.items():
        for name, value in metrics.items():
            if name != "time" and not name.startswith("speed/"):
                assert actual[step][name] == pytest.approx(value, rel=2e-3, abs=1e-4), (step, name)
    params = [restore_part(w / "checkpoints") for w in (finished, workdir)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *params)


def test_four_processes_resume_a_run_of_one_and_end_it(finished, config_file, tmp_path):
    workdir = tmp_path / "run with spaces"
    shutil.copytree(finished[0] / "checkpoints" / "3", workdir / "checkpoints" / "3")
    lines = (finished[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text(lines[0])
    processes = start_processes(4, [f"--config={config_file}", f"--workdir={workdir}"])
    statuses, outputs, errors = ended(processes)
    assert statuses == [0] * 4, errors
    # One of them prepares what the recipe looks at, once they have met.
    assert config_file.with_name("prepared").read_text().split() == [str(processes[0].pid)]
    # One of them speaks.
    assert ["accuracy" in text for text in outputs] == [True, False, False, False]
    assert "resuming after step 3 of 6" in errors[0] and "step 6" not in "".join(errors[1:])
    assert (workdir / "routing.png").read_bytes().startswith(b"\x89PNG")
    # Evaluation, too, with its numbers of images.
    assert_same_run(workdir, finished[0])


def test_a_signal_to_one_of_two_ends_both_at_one_step_and_one_process_goes_on(
    finished, config_file, digits_dir, tmp_path
):
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}/run"]
    processes = start_processes(2, arguments)
    while not (tmp_path / "run" / "checkpoints").exists() and processes[0].poll() is None:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    statuses, _, errors = ended(processes)
    assert statuses == [PREEMPTED_STATUS] * 2, errors
    [step] = {line for text in errors for line in text.splitlines() if "preempted" in line}
    newest = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"checkpoint saved at step {newest};" in step and newest < 6
    loop.train_and_evaluate(small_config(digits_dir), tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_what_one_process_cannot_do_ends_all(config_file, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}/file/run"]
    statuses, _, errors = ended(start_processes(2, arguments))
    assert 2 in statuses and 0 not in statuses
    for text in errors:
        [line] = [line for line in text.splitlines() if line.startswith("error:")]
        assert "cannot be written" in line


def test_process_zero_prepares_for_longer_than_gloo_waits():
    statuses, outputs, errors = ended(start_processes(2, [], module="slow_preparation"))
    assert statuses == [0, 0], errors
    assert [text.split()[-1] for text in outputs] == ["8", "8"]
