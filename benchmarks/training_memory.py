"""Memory of a training on the command line, epoch after epoch.

    python -m benchmarks.training_memory --epochs=6 --workers=2

Starts `python -m vmoe_prc.main` with a small model on the digits, which evaluates and saves a
checkpoint after each epoch, and reads what the system says of its memory: "own" is what only the
process that trains has (USS), "with shared" counts its part of what it shares, such as batches of
workers (PSS), "workers" what its child processes have. Each is the median of an epoch's samples.
"to epoch 2" is the ratio of "with shared" to its value in epoch 2: the first epoch compiles.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks import timing
from configs import digits_prc
from vmoe_prc.config import parse_arguments
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics

# Training images of the digits, two views each.
EXAMPLES, BATCH_SIZE = 1438, 32
REPORT_EVERY = 5
SAMPLE_SECONDS = 0.5
MB = 1e6


def get_config(arguments: str = ""):
    """The recipe of the training: this file is its --config."""
    args = parse_arguments(arguments, epochs=6, workers=0)
    config = digits_prc.get_config()
    steps = EXAMPLES // BATCH_SIZE
    with config.unlocked():
        config.dataset.train.workers = args.workers
        config.dataset.train.batch_size = BATCH_SIZE
        config.train_steps = args.epochs * steps
        config.model.update({"hidden_size": 32})
        config.model.encoder.update({"num_layers": 2, "mlp_dim": 64})
        config.model.encoder.moe.update({"layers": (1,)})
        config.evaluate.every_steps = steps
        config.save_checkpoint.every_steps = steps
        config.report_progress.every_steps = REPORT_EVERY
    return config


def sample(process: psutil.Process) -> dict[str, float]:
    """Returns the memory of a process and of its children, in MB."""
    memory = process.memory_full_info()
    children = [child.memory_full_info().uss for child in process.children()]
    return {"own": memory.uss / MB, "with shared": memory.pss / MB, "workers": sum(children) / MB}


def last_step(workdir: pathlib.Path) -> int:
    """Returns the last step of which a run has written metrics; 0 if there is none."""
    path = workdir / METRICS_FILE
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def watch(process: subprocess.Popen, workdir: pathlib.Path) -> dict[int, list[dict[str, float]]]:
    """Samples the memory of a training until it ends; returns the samples by epoch, from 1 on."""
    samples: dict[int, list[dict[str, float]]] = {}
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        step = last_step(workdir)
        try:
            found = sample(watched)
        except psutil.Error:
            # It, or one of its workers, has just ended.
            continue
        samples.setdefault(step * BATCH_SIZE // EXAMPLES + 1, []).append(found)
        time.sleep(SAMPLE_SECONDS)
    return samples


def rows_of(samples: dict[int, list[dict[str, float]]], epochs: int) -> list[dict[str, object]]:
    """Makes one row per epoch, from the second one on."""
    medians = {
        epoch: {key: statistics.median(one[key] for one in samples[epoch]) for key in found[0]}
        for epoch, found in sorted(samples.items())
        if 1 < epoch <= epochs
    }
    base = medians[2]["with shared"]
    return [
        {
            "epoch": epoch,
            "samples": len(samples[epoch]),
            **{f"{key}, MB": value for key, value in median.items()},
            "to epoch 2": median["with shared"] / base,
        }
        for epoch, median in medians.items()
    ]


def run(args: argparse.Namespace, workdir: pathlib.Path) -> None:
    """Trains, watches and reports.

    Raises:
      CalledProcessError: If the training fails.
    """
    source = f"{pathlib.Path(__file__)}:epochs={args.epochs},workers={args.workers}"
    command = [sys.executable, "-m", "vmoe_prc.main", f"--config={source}", f"--workdir={workdir}"]
    with (workdir.parent / "log.txt").open("w") as log:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            samples = watch(process, workdir)
        finally:
            process.kill()
    if process.wait():
        print((workdir.parent / "log.txt").read_text(), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    timing.report(args, rows_of(samples, args.epochs))


def main(argv: list[str] | None = None) -> None:
    """Trains in a temporary directory."""
    parser = timing.parser(__doc__, repetitions=1)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the training")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of training")
    with tempfile.TemporaryDirectory() as directory:
        run(parser.parse_args(argv), pathlib.Path(directory, "run"))


if __name__ == "__main__":
    main()
