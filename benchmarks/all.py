"""Runs every benchmark for CPUs at its default size and writes a JSON file for each.

    python -m benchmarks.all --output=workdir/benchmarks

On two cores of their own it takes about ten minutes. `--only=moe_layer,memory` runs some.
"""

import argparse
import pathlib
import subprocess
import sys
import time

from benchmarks import timing

NAMES = (
    "startup",
    "memory",
    "moe_layer",
    "grouped_product",
    "train_step",
    "prc_cost",
    "inference",
    "exports",
    "evaluation",
    "input_pipeline",
    "worker_processes",
    "training_memory",
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("workdir/benchmarks"), help="directory"
    )
    parser.add_argument("--only", type=timing.names, default=list(NAMES), help="by name")
    args = parser.parse_args(argv)
    failed = []
    for name in args.only:
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            f"--output={args.output / name}.json",
        ]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
