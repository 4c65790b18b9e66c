"""Batches by worker processes: the same as by threads, and errors that say what happened."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import numpy as np
import psutil
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import OPS
from vmoe_prc.data import pipeline, workers
from vmoe_prc.data.split import open_split
from vmoe_prc.errors import RunError

PROCESS = (
    "decode|two_views(8, (50, 100), (50, 100))|flip_lr|randaug(2, 5, 2, 1)|value_range(-1, 1)"
    '|onehot(30)|keep("image", "labels", "view_from_image")'
)


class PoolHere:
    """Runs jobs in this process as soon as they are submitted, and notes their steps."""

    started: list["PoolHere"]

    def __init__(self, processes, start):
        self.processes, self.steps = processes, []
        function, task = start
        function(task)
        PoolHere.started.append(self)

    def submit(self, function, job):
        self.steps.append(job[1])
        future = Future()
        future.set_result(function(job))
        return future

    def close(self):
        pass


@pytest.fixture
def pool_here(monkeypatch):
    monkeypatch.setattr(workers, "Pool", PoolHere)
    monkeypatch.setattr(PoolHere, "started", [], raising=False)
    return PoolHere.started


def test_no_more_workers_than_the_cores_can_run(dataset, monkeypatch, pool_here):
    monkeypatch.setattr(workers, "num_cores", lambda: 1)
    split = open_split(dataset(process=PROCESS, shuffle_buffer=1, batch_size=20, workers=999))
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        next(made)
    assert [pool.processes for pool in pool_here] == [2]


def test_workers_make_the_next_epoch_before_the_present_one_ends(dataset, pool_here):
    """As many steps wait for workers at the ends of epochs as anywhere else: none is held back."""
    batch, count = 4, 2
    split = open_split(dataset(shuffle_buffer=1, batch_size=batch, workers=count))
    size, epochs = split.num_examples, 3
    steps, asked = epochs * size // batch, []
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        for _ in range(steps):
            next(made)
            asked.append(pool_here[0].steps[-1])
    assert [step - consumed for consumed, step in enumerate(asked)] == [2 * count - 1] * steps
    for epoch in range(1, epochs):
        last = (epoch * size - 1) // batch
        # Before the last batch of an epoch is consumed, positions of the next one are asked for.
        assert (asked[last - 1] + 1) * batch > epoch * size
    assert pool_here[0].steps == list(range(steps + 2 * count - 1))


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    options = {"process": PROCESS, "shuffle_buffer": 1, "batch_size": 20}
    rows = {"seed": 3, "start_step": 5, "process_index": 1, "process_count": 2}
    expected = pipeline.train_batches(open_split(dataset(**options)), **rows)
    known = psutil.Process().children()
    made = pipeline.train_batches(open_split(dataset(**options, workers=2)), **rows)
    for batch, other in itertools.islice(zip(made, expected, strict=True), 9):
        assert batch.keys() == other.keys()
        for key, x in batch.items():
            np.testing.assert_array_equal(x, other[key])
    expected.close()
    # Signals to all processes of a job are for the one that trains.
    started = [x for x in psutil.Process().children() if x not in known and is_worker(x)]
    assert len(started) == 2
    for child in started:
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
    assert len(list(itertools.islice(made, 9))) == 9
    # A worker that is killed ends the run with one line.
    started[0].kill()
    with pytest.raises(RunError, match=f"process {started[0].pid} was killed by SIGKILL"):
        list(itertools.islice(made, 50))
    assert not psutil.wait_procs(started, timeout=20)[1]


def is_worker(process):
    return "answer_jobs" in " ".join(process.cmdline())


SCRIPT = """
import ml_collections, numpy as np, sys
from vmoe_prc.runtime.quiet_start import quiet_tensorflow
quiet_tensorflow()
from vmoe_prc.data import pipeline
from vmoe_prc.data.split import open_split

print("once")
config = ml_collections.ConfigDict(eval(sys.argv[1]))
made = pipeline.train_batches(open_split(config), seed=0)
print(next(made)["image"].shape)
"""


@pytest.mark.slow
def test_a_script_needs_no_guard(dataset, tmp_path):
    """It has no `if __name__ == "__main__"`, and does not run again in the worker."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    section = dataset(batch_size=4, workers=1).to_dict()
    result = subprocess.run(
        [sys.executable, str(script), repr(section)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["once", "(4, 8, 8, 3)"]
    assert "leaked" not in result.stderr


def test_ops_of_the_script_that_was_started_are_refused(dataset, monkeypatch):
    op = OPS["flip_lr"]
    monkeypatch.setattr(op, "__module__", "__main__")
    split = open_split(dataset(process=PROCESS, batch_size=4, workers=2))
    with pytest.raises(ConfigError, match=r"workers = 2: .* put them into a module"):
        next(pipeline.train_batches(split, seed=0))
