"""A run that gets SIGTERM, and whose reader then hangs with Python's lock as it is closed."""

import ctypes
import os
import signal
import sys

from small_run import small_config

from vmoe_prc.data import pipeline
from vmoe_prc.runtime import processes, programs
from vmoe_prc.train import loop

_train_batches = pipeline.train_batches


def _hanging_batches(*arguments, **options):
    batches = _train_batches(*arguments, **options)
    try:
        yield next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        yield from batches
    finally:
        ctypes.PyDLL(None).sleep(1000)


def main(data_dir: str, workdir: str) -> None:
    """Trains."""
    pipeline.train_batches = _hanging_batches
    processes.CLEANUP_SECONDS = 2
    loop.train_and_evaluate(small_config(data_dir), workdir)


if __name__ == "__main__":
    sys.exit(programs.run_program(lambda: main(*sys.argv[1:])))
