"""Trains both arms of the digits config with several seeds and prints their tables.

    python -m benchmarks.digits_seeds --seeds=3 --workdir=workdir/digits_seeds

A run that has ended is not repeated, one that was interrupted goes on.
"""

import pathlib
import subprocess
import sys

from absl import app, flags

from vmoe_prc.report.__main__ import main as report
from vmoe_prc.workdir import SUMMARY_FILE

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=2)
_K = flags.DEFINE_integer("k", 2, "Experts that each token selects.")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/digits_seeds", "Directory of all runs.")

ARMS = {"V-MoE": "off", "PRC": "on"}


def run(arm: str, seed: int) -> None:
    """Trains one model, unless it has been."""
    arguments = f"k={_K.value},prc={ARMS[arm]},seed={seed}"
    workdir = pathlib.Path(_WORKDIR.value) / arguments
    if not (workdir / SUMMARY_FILE).exists():
        config = f"--config=configs/digits_prc.py:{arguments}"
        command = [sys.executable, "-m", "vmoe_prc.main", config, f"--workdir={workdir}"]
        subprocess.run(command, check=True, stdout=sys.stderr)


def main(argv: list[str]):
    """Runs what is missing and prints the tables."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    for seed in range(_SEEDS.value):
        for arm in ARMS:
            run(arm, seed)
    sys.exit(report([_WORKDIR.value, "--format=markdown"]))


if __name__ == "__main__":
    app.run(main)
