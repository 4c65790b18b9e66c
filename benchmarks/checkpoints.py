"""How many bytes the checkpoints of the recipes have and how long writing them takes, in Markdown.

    python -m benchmarks.checkpoints --bandwidth=1.0 --hosts=1,4,16
    python -m benchmarks.checkpoints --recipes="CIFAR-10,ImageNet-1K" --write=/tmp

The size counts all arrays of the state, by their shapes: parameters, the optimiser's moments
and, with `ema_decay`, the moving average. All hosts write at once, so that they take at least

    size / (hosts * bandwidth of a host)

With `--write` the state of each recipe, of random numbers, is written to that directory from one
CPU device, by turns with a plain file of as many bytes; both are flushed to the disk.
"""

import argparse
import importlib
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from benchmarks import cost, timing
from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.compile.batches import train_batch_spec
from vmoe_prc.config import complete
from vmoe_prc.runtime.memory import device_bytes
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.train.step import build_step
from vmoe_prc.workdir.text_tables import markdown_lines

LARGE = "imagenet21k_vmoe:experts=32,backbone="
RECIPES = {
    "Digits": "digits_prc",
    "Fashion-MNIST": "fashion_mnist_prc",
    **cost.RECIPES,
    "ImageNet-21k, L/16, 32 experts": f"{LARGE}L/16",
    "ImageNet-21k, H/14, 32 experts, last 5": f"{LARGE}H/14,last=5",
}
# Any number of steps: the sizes do not depend on it.
STEPS = 10**9


def state_of(config: ml_collections.ConfigDict) -> Any:
    """Returns the shapes of the state that a run of the recipe saves, on one device.

    Args:
      config: The completed configuration.
    """
    config.num_expert_partitions = 1
    mesh = create_mesh(1, jax.devices()[:1])
    return build_step(config, mesh, train_batch_spec(config.dataset.train), STEPS).abstract_state


def write_ratio(
    abstract_state: Any, folder: pathlib.Path, repetitions: int
) -> tuple[float, float, float]:
    """Writes a state as a run does and as a plain file, by turns.

    Args:
      abstract_state: Shapes, dtypes and shardings.
      folder: A directory of the file system to measure.
      repetitions: How many times.

    Returns:
      The least CPU seconds of a checkpoint; the share of its time in which training waits, and its
      time over the time of the plain file of its turn, both medians.
    """
    state = _random(abstract_state)
    content = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))
    cpu, waits, ratios = [], [], []
    with Checkpointer(folder / "checkpoints") as checkpointer:
        for step in range(1 + repetitions):
            began, cpu_began = time.perf_counter(), time.process_time()
            checkpointer.save(step, state)
            waited = time.perf_counter() - began
            checkpointer.wait()
            _flush(folder / "checkpoints")
            whole, used = time.perf_counter() - began, time.process_time() - cpu_began
            plain = _timed(lambda: _write_plain(folder / "plain", content))
            if step:  # The first one makes the directories and threads.
                cpu.append(used)
                waits.append(waited / whole)
                ratios.append(whole / plain)
    return min(cpu), statistics.median(waits), statistics.median(ratios)


def _random(abstract_state: Any) -> Any:
    rng = np.random.default_rng(0)

    def draw(x):
        if x.dtype.kind in "iu":
            return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
        values = rng.standard_normal(x.shape, np.float32).astype(x.dtype)
        return jax.device_put(values, x.sharding)

    return jax.tree.map(draw, abstract_state)


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _write_plain(path: pathlib.Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: pathlib.Path) -> None:
    """Waits until the files of a folder are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def row_of(name: str, args: argparse.Namespace) -> dict[str, str]:
    """Returns the row of a recipe, by columns."""
    module, _, arguments = RECIPES[name].partition(":")
    config = complete(importlib.import_module(f"configs.{module}").get_config(arguments))
    state = state_of(config)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    size = device_bytes(state) / 1e9  # On one device.
    row = {"recipe": name, "parameters": f"{parameters / 1e6:,.1f} M", "GB": f"{size:,.3f}"}
    for hosts in args.hosts:
        row[f"s, {hosts} host{'s' * (hosts > 1)}"] = f"{size / (hosts * args.bandwidth):,.2f}"
    if args.write:
        with tempfile.TemporaryDirectory(dir=args.write) as folder:
            cpu, waits, ratio = write_ratio(state, pathlib.Path(folder), args.repetitions)
        row["CPU s a GB"] = f"{cpu / size:.1f}"
        row["training waits"] = f"{waits:.0%}"
        row["time relative to a plain file"] = f"{ratio:.2f}"
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipes", type=timing.names, default=list(RECIPES), help="by name")
    parser.add_argument("--bandwidth", type=float, default=1.0, help="GB/s of a host, assumed")
    parser.add_argument("--hosts", type=timing.integers, default=[1, 4, 16])
    parser.add_argument("--write", type=pathlib.Path, help="directory to write to")
    parser.add_argument("--repetitions", type=int, default=5, help="of writing")
    args = parser.parse_args(argv)
    unknown = [name for name in args.recipes if name not in RECIPES]
    if unknown:
        parser.error(f"--recipes: {unknown[0]!r} is none of {', '.join(RECIPES)}")
    rows = [row_of(name, args) for name in args.recipes]
    print("\n".join(markdown_lines([[*rows[0]], *([*row.values()] for row in rows)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
