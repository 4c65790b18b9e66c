"""A program that still reads data comes to its end."""

import subprocess
import sys

import pytest

PROGRAMS = 4
SCRIPT = """
import json, sys
import ml_collections
from vmoe_prc.runtime.quiet_start import quiet_tensorflow
quiet_tensorflow()
from vmoe_prc.data import pipeline
from vmoe_prc.data.split import open_split

section = ml_collections.ConfigDict(json.loads(sys.argv[1]))
batches = pipeline.train_batches(open_split(section), seed=0)
for _ in range(5):
    next(batches)
"""


@pytest.mark.slow
def test_a_program_ends_while_its_threads_read(dataset):
    # Without care about every third one hangs.
    command = [sys.executable, "-c", SCRIPT, dataset(batch_size=64, cache="loaded").to_json()]
    programs = [subprocess.Popen(command) for _ in range(PROGRAMS)]
    try:
        assert [program.wait(timeout=120) for program in programs] == [0] * PROGRAMS
    finally:
        for program in programs:
            program.kill()
