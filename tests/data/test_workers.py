"""Batches by worker processes: the same as by threads, and errors that say what happened."""

import contextlib
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest

from vmoe_prc.data import pipeline
from vmoe_prc.data.split import open_split
from vmoe_prc.errors import RunError

PROCESS = (
    "decode|two_views(8, (50, 100), (50, 100))|flip_lr|randaug(2, 5, 2, 1)|value_range(-1, 1)"
    '|onehot(30)|keep("image", "labels", "view_from_image")'
)


@pytest.mark.slow
def test_no_more_workers_than_the_cores_can_run(dataset, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    split = open_split(dataset(process=PROCESS, shuffle_buffer=1, batch_size=20, workers=999))
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        next(made)
        assert len(multiprocessing.active_children()) == 2


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    options = {"process": PROCESS, "shuffle_buffer": 1, "batch_size": 20}
    rows = {"seed": 3, "start_step": 5, "process_index": 1, "process_count": 2}
    expected = pipeline.train_batches(open_split(dataset(**options)), **rows)
    made = pipeline.train_batches(open_split(dataset(**options, workers=2)), **rows)
    for batch, other in itertools.islice(zip(made, expected, strict=True), 9):
        assert batch.keys() == other.keys()
        for key, x in batch.items():
            np.testing.assert_array_equal(x, other[key])
    expected.close()
    # Signals to all processes of a job are for the one that trains.
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for child in workers:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    assert len(list(itertools.islice(made, 9))) == 9
    # A worker that is killed ends the run with one line.
    workers[0].kill()
    with pytest.raises(RunError, match=f"process {workers[0].pid} was killed by SIGKILL"):
        list(itertools.islice(made, 50))
    for child in workers:
        child.join(timeout=20)
        assert not child.is_alive()
