"""Lowers and compiles the step of a configuration for a target."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata

import jax
import ml_collections

from vmoe_prc.compile import hlo
from vmoe_prc.compile.batches import train_batch_spec
from vmoe_prc.compile.memory import allocations, in_gib, remedies, too_large
from vmoe_prc.compile.report import Report, describe
from vmoe_prc.compile.targets import Target, devices_of, parse_target
from vmoe_prc.errors import UserError
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.train.fit_to_devices import fit_to_devices
from vmoe_prc.train.step import BuiltStep, abstract_batch, build_step

# Longer than any warm-up; the program differs only by constants of the schedule.
UNKNOWN_LENGTH = 10**9
PROGRESS_SECONDS = 30


class TooLargeError(UserError):
    """A step that needs more memory than a device has; its text is for the user."""

    exit_status = 1
    _has_lines = True


def compile_step(
    config: ml_collections.ConfigDict, target_name: str, progress: bool = False
) -> tuple[jax.stages.Compiled, Report]:
    """Compiles the step of a configuration, and describes what came out.

    Args:
      config: The completed configuration.
      target_name: Such as 'v5e:4x4'.
      progress: Whether to report the time so far on stderr.

    Raises:
      ConfigError: If the configuration or the target cannot be used.
      RunError: If the compiler is not installed.
      TooLargeError: If the step does not fit the memory of a device.
    """
    target = parse_target(target_name)
    batch_spec = train_batch_spec(config.dataset.train)
    devices = devices_of(target)
    config = fit_to_devices(config, {"train": batch_spec["image"].shape}, devices)
    mesh = create_mesh(config.num_expert_partitions, devices)
    step = build_step(config, mesh, batch_spec, config.train_steps or UNKNOWN_LENGTH)
    start = time.perf_counter()
    with _progress(f"compiling for {target.name}", progress):
        compiled = _compile(config, target, mesh, step, batch_spec)
    seconds = time.perf_counter() - start
    report = describe(config, target, mesh, step, compiled, seconds, _versions(target))
    if not report.memory.fits:
        memory = report.memory
        largest = [
            f"{in_gib(size)} {name}" for name, size in hlo.largest_arrays(hlo.text_of(compiled))
        ]
        size = (
            f"{in_gib(memory.peak)} of a device's {in_gib(memory.available)}: "
            f"{in_gib(memory.arguments)} for state and batch, "
            f"{in_gib(memory.temporaries)} for what is computed"
        )
        raise TooLargeError(too_large(size, largest, _remedies(config, target, mesh, step)))
    return compiled, report


def _compile(config, target, mesh, step, batch_spec) -> jax.stages.Compiled:
    with jax.set_mesh(mesh):
        traced = step.train_step.trace(step.abstract_state, abstract_batch(batch_spec, mesh))
        lowered = traced.lower(lowering_platforms=(target.chip.platform,))
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        size = next((line for line in message.splitlines() if "xceed" in line), message[:300])
        options = _remedies(config, target, mesh, step)
        raise TooLargeError(too_large(size.strip(), allocations(message), options)) from None


def _remedies(config, target: Target, mesh: jax.sharding.Mesh, step: BuiltStep) -> list[str]:
    return remedies(config, step.abstract_state, mesh.size, target.chip.memory)


def _versions(target: Target) -> dict[str, str]:
    packages = ["jax", "libtpu" if target.chip.platform == "tpu" else "jax-cuda13-plugin"]
    return {name: metadata.version(name) for name in packages}


@contextlib.contextmanager
def _progress(what: str, visible: bool) -> Iterator[None]:
    """Prints a line to stderr every half minute, so that a long compilation shows progress."""
    done = threading.Event()
    start = time.monotonic()

    def tell():
        while not done.wait(PROGRESS_SECONDS):
            print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    if visible:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if visible:
            thread.join()
