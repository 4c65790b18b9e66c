"""Trains both arms of the digits config with several seeds and prints their table.

    python -m benchmarks.digits_seeds --seeds=3 --workdir=workdir/digits_seeds

A run that has ended is not repeated, one that was interrupted goes on.
"""

import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

from vmoe_prc.metrics import METRICS_FILE, read_metrics

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=2)
_K = flags.DEFINE_integer("k", 2, "Experts that each token selects.")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/digits_seeds", "Directory of all runs.")

ARMS = {"V-MoE": "off", "PRC": "on"}
COLUMNS = {
    "test/accuracy": "test accuracy",
    "test_pairs/top1": "top-1 agreement",
    "test_pairs/top2": "top-2",
    "test_pairs/top2_unordered": "top-2, unordered",
}


def run(arm: str, seed: int) -> dict[str, float]:
    """Trains one model, unless it has been; returns its last evaluation."""
    arguments = f"k={_K.value},prc={ARMS[arm]},seed={seed}"
    workdir = pathlib.Path(_WORKDIR.value) / arguments
    done = workdir / "done"
    if not done.exists():
        config = f"--config=configs/digits_prc.py:{arguments}"
        command = [sys.executable, "-m", "vmoe_prc.main", config, f"--workdir={workdir}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        done.touch()
    return next(m for m in reversed(read_metrics(workdir / METRICS_FILE)) if "test/accuracy" in m)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Formats mean ± standard deviation over the seeds, in %, as Markdown."""
    columns = [c for c in COLUMNS if c in results["PRC"][0]]
    rows = [["digits, %", *(COLUMNS[c] for c in columns)], ["---"] * (len(columns) + 1)]
    for arm, runs in results.items():
        values = [100 * np.array([metrics[c] for metrics in runs]) for c in columns]
        rows.append(
            [f"{arm}, k={_K.value}", *(f"{v.mean():.2f} ± {v.std(ddof=1):.2f}" for v in values)]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: list[str]):
    """Runs what is missing and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(_SEEDS.value):
        for arm in ARMS:
            results[arm].append(run(arm, seed))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
