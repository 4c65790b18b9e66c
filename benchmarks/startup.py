"""How long it takes to start: imports, building, compiling, the first step.

    python -m benchmarks.startup

Each repetition is a fresh process. `over_jax` is the time beyond `import jax`, all
that the core of the package adds. The compilation cache is empty for `cold`, and what
`cold` left in it for `warm`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import timing

CORE = (
    *("runtime.mesh", "models", "losses", "optimizer", "steps.state", "steps.train"),
    "checkpoints.manager",
)
BASELINE = "import jax"
IMPORTS = {
    BASELINE: "import jax",
    "import the core": "import jax, " + ", ".join(f"vmoe_prc.{module}" for module in CORE),
    "import the loop": "import vmoe_prc.train.loop",
}


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8, help="images; a multiple of 8")
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    parser.add_argument("--method", default="gather")
    args = parser.parse_args(argv)
    timing.report(args, [*processes(args.repetitions), *first_steps(args)])


def processes(repetitions: int) -> list[dict[str, Any]]:
    """Times whole processes that only import, or print their help, in turns."""

    def runner(*arguments: str) -> Callable[[], None]:
        # Abseil ends with status 1 after printing help.
        return lambda: _run(arguments, check="--help" not in arguments) and None

    functions = {name: runner("-c", code) for name, code in IMPORTS.items()}
    functions["main --help"] = runner("-m", "vmoe_prc.main", "--help")
    times = timing.take_turns(functions, repetitions)
    base = min(times[BASELINE].wall)
    return [_row(name, own.wall, over_jax=min(own.wall) - base) for name, own in times.items()]


def first_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times the phases up to the first step, without and with a filled cache."""
    phases: dict[str, list[float]] = {}
    sizes = str(args.image_size), str(args.batch_size)
    for _ in range(args.repetitions):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                output = _run(
                    ["-m", "benchmarks.startup_phases", args.model, args.method, *sizes],
                    JAX_COMPILATION_CACHE_DIR=cache,
                    JAX_ENABLE_COMPILATION_CACHE="true",
                )
                for phase, seconds in json.loads(output).items():
                    phases.setdefault(f"{phase}, {state}", []).append(seconds)
    return [_row(name, seconds) for name, seconds in phases.items()]


def _run(arguments: Sequence[str], check: bool = True, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        check=check,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        cwd=pathlib.Path(__file__).parents[1],
    ).stdout


def _row(name: str, seconds: Sequence[float], over_jax: float | None = None) -> dict[str, Any]:
    return {
        "phase": name,
        "seconds": min(seconds),
        "median": statistics.median(seconds),
        "over_jax": over_jax,
    }


if __name__ == "__main__":
    main()
