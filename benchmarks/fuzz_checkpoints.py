"""Reads damaged checkpoints: of runs, in V-MoE's format, safetensors and npz files.

    python -m benchmarks.fuzz_checkpoints --count=1000

Each case damages a file of a good checkpoint at random, by a seed, and reads it as training,
analysis, prediction or fine-tuning do. It may end in two ways only: one clear line that refuses
the checkpoint, or arrays that are right. Checkpoints of runs have checksums, and npz files have
the checksums of zip archives: all their bits must be right. Of a run, training may fall back to the
checkpoint before, and warns. In the other formats no checksum covers the elements: of them the
number and the size must be right, and nothing may come from memory that nobody wrote. A
traceback, a case of more than a minute, and wrong data are failures; the exit status is 1 if there
are any, and the command prints how to repeat each.
"""

import collections
import dataclasses
import functools
import pathlib
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import SingleDeviceSharding

from benchmarks import fuzzing
from benchmarks.fuzzing import WrongDataError, damage
from vmoe_prc.checkpoints.manager import Checkpointer, CheckpointError
from vmoe_prc.checkpoints.params import read_params, write_params
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.logs import log_errors_of_threads
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER

STEPS = (1, 2)
MEMORY = 8 * 2**30
REFUSALS = (CheckpointError, RunError)


def make_params(seed: int) -> dict[str, np.ndarray]:
    """Returns parameters by name; no element is 0, as memory that nobody wrote often is."""
    rng = np.random.default_rng(seed)
    shapes = {"head/kernel": (12, 5), "head/bias": (5,), "Encoder/block/Mlp/kernel": (4, 6, 3)}
    return {f"params/{k}": rng.uniform(1, 2, x).astype(np.float32) for k, x in shapes.items()}


def make_state(step: int) -> dict[str, Any]:
    """Returns the state of a run at a step, with an average of the parameters."""
    names = ("params", "ema_params", "opt_state")
    state = {name: _nested(make_params(10 * step + i)) for i, name in enumerate(names)}
    return {**state, "step": np.int32(step)}


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Good checkpoints, by which the cases begin.

    Attributes:
      directory: Where they are.
    """

    directory: pathlib.Path

    def prepare(self) -> None:
        """Writes them."""
        with Checkpointer(self.directory / "run" / CHECKPOINT_FOLDER, keep_last=2) as checkpointer:
            for step in STEPS:
                checkpointer.save(step, make_state(step))
        params = make_params(0)
        for name in ("vmoe/checkpoint", "safetensors/x.safetensors"):
            (self.directory / name).parent.mkdir()
            write_params(self.directory / name, params)
        (self.directory / "npz").mkdir()
        np.savez_compressed(self.directory / "npz" / "x.npz", **params)


def fuzz_run(checkpoints: Checkpoints, rng: np.random.Generator, work: pathlib.Path) -> None:
    """A file of the newest of two checkpoints of a run."""
    directory = shutil.copytree(checkpoints.directory / "run", work / "run")
    _damage_one(directory / CHECKPOINT_FOLDER / str(STEPS[-1]), rng)
    if rng.random() < 0.5:
        expected = make_state(STEPS[-1])["ema_params"]
        _check_equal(read_params(directory), _flat({"params": expected}))
        return
    with Checkpointer(directory / CHECKPOINT_FOLDER, keep_last=2) as checkpointer:
        sharding = SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0)
        )
        state = jax.device_get(checkpointer.restore(abstract))
    if int(state["step"]) not in STEPS:
        raise WrongDataError(f"step {state['step']}")
    _check_equal(_flat(state), _flat(make_state(int(state["step"]))))


def fuzz_npz(checkpoints: Checkpoints, rng: np.random.Generator, work: pathlib.Path) -> None:
    """An npz file."""
    directory = shutil.copytree(checkpoints.directory / "npz", work / "npz")
    _damage_one(directory, rng)
    found, expected = read_params(directory / "x.npz"), make_params(0)
    # Names are no part of what the checksums of an archive cover.
    _check_equal(_by_content(found), _by_content(expected))


def fuzz_safetensors(
    checkpoints: Checkpoints, rng: np.random.Generator, work: pathlib.Path
) -> None:
    """A safetensors file."""
    directory = shutil.copytree(checkpoints.directory / "safetensors", work / "safetensors")
    _damage_one(directory, rng)
    _check_size(read_params(directory / "x.safetensors"), directory)


def fuzz_vmoe(checkpoints: Checkpoints, rng: np.random.Generator, work: pathlib.Path) -> None:
    """A file of a checkpoint in V-MoE's format."""
    directory = shutil.copytree(checkpoints.directory / "vmoe", work / "vmoe")
    _damage_one(directory, rng)
    _check_size(read_params(directory / "checkpoint"), directory)


CASES: dict[str, Callable[[Checkpoints, np.random.Generator, pathlib.Path], None]] = {
    "run": fuzz_run,
    "npz": fuzz_npz,
    "safetensors": fuzz_safetensors,
    "vmoe": fuzz_vmoe,
}
ROUND = ("run", "npz", "safetensors", "vmoe", "vmoe")


def _damage_one(directory: pathlib.Path, rng: np.random.Generator) -> None:
    """Damages one file of a directory, takes it away, or makes it a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    content = path.read_bytes()
    path.unlink()
    way = rng.random()
    if way < 0.03:
        path.mkdir()
    elif way > 0.06:
        path.write_bytes(damage(content, rng) if content else b"x")


def _check_equal(found: Mapping[Any, np.ndarray], expected: Mapping[Any, np.ndarray]) -> None:
    """Checks that all arrays are equal bit for bit."""
    if found.keys() != expected.keys():
        raise WrongDataError(f"arrays {sorted(map(str, found.keys() ^ expected.keys()))[:4]}")
    for name, value in expected.items():
        other = np.asarray(found[name])
        if (other.dtype, other.shape) != (value.dtype, value.shape):
            raise WrongDataError(f"{name}: {other.dtype} {other.shape}")
        if other.tobytes() != value.tobytes():
            raise WrongDataError(f"{name}: other elements")


def _check_size(found: Mapping[str, np.ndarray], directory: pathlib.Path) -> None:
    """Checks that no more elements are given than files hold, and none that nobody wrote."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    given = sum(x.nbytes for x in found.values())
    # Elements of V-MoE's format are compressed; of what we wrote to less than a fourth, never.
    if given > 4 * size:
        raise WrongDataError(f"{given} bytes of files of {size}")


def _by_content(arrays: Mapping[str, np.ndarray]) -> dict[bytes, np.ndarray]:
    return {x.tobytes(): x for x in arrays.values()}


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *levels, last = name.removeprefix("params/").split("/")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[last] = value
    return tree


def _flat(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def run(
    count: int, first_seed: int = 0, kinds: tuple[str, ...] = ROUND
) -> tuple[dict[str, collections.Counter], list[str]]:
    """Runs cases; see `fuzzing.run`."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(pathlib.Path(directory))
        checkpoints.prepare()
        cases = {name: functools.partial(case, checkpoints) for name, case in CASES.items()}
        return fuzzing.run(cases, ROUND, REFUSALS, range(first_seed, first_seed + count), kinds)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    logging.set_verbosity(logging.ERROR)
    log_errors_of_threads()
    # Nobody has as much as a damaged file may ask for.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    return fuzzing.main("fuzz_checkpoints", __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
