"""The bfloat16 train step on a GPU with each kind of dispatch; see `benchmarks.gpu`."""

import argparse
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import timing, trace
from benchmarks.programs import Program, lower_step, make_state, model_config
from benchmarks.roofline import flash_calls, roofline
from vmoe_prc.config import Config
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.runtime.peaks import memory_bandwidth, peak_flops

DTYPE = "bfloat16"
BASELINE = "einsum"


class Ceilings(NamedTuple):
    """What the device can do at most: FLOP/s and bytes/s."""

    flops: float
    bandwidth: float


def ceilings_of(device: str) -> Ceilings | None:
    """Returns the peaks of a device by its name, or None if they are not known."""
    flops, bandwidth = peak_flops(device, DTYPE), memory_bandwidth(device)
    return Ceilings(flops, bandwidth) if flops and bandwidth else None


def training(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields rows of each model: memory and speed of each dispatch, then kernels."""
    for description, batch_size in zip(args.models, args.batch_sizes, strict=True):
        yield from measure(args, description, batch_size)


def measure(
    args: argparse.Namespace, description: str, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Times one model with each kind of dispatch in turns, then traces each."""
    configs = {
        method: model_config(description, args.image_size, method, DTYPE)
        for method in [*args.methods, BASELINE]
    }
    steps = _compile(args, configs, batch_size)
    model = {"model": description, "images": batch_size}
    for method, step in sorted(steps.items(), key=lambda item: compiled_peak(item[1])):
        yield model | {"dispatch": method} | _memory(step)
    functions = {name: several(step.run, args.steps) for name, step in steps.items()}
    times = timing.compare(timing.take_turns(functions, args.repetitions), BASELINE)
    for method, step in steps.items():
        seconds = times[method]["seconds"] / args.steps
        yield model | {
            "dispatch": method,
            **_speed(args, configs[method], step, batch_size / seconds),
            "to_baseline": 1 / times[method]["ratio"],
            "low": 1 / times[method]["high"],
            "high": 1 / times[method]["low"],
        }
        cost = step.compiled.cost_analysis()
        if cost:
            yield model | {"dispatch": method} | roofline(cost, seconds, *args.ceilings)
    for method, step in steps.items():
        profile = trace.kernels(trace.record(step.run, args.steps))
        yield model | {
            "dispatch": method,
            "busy": min(map(trace.busy_share, profile), default=None),
            "kernels": trace.by_kind(kernel for device in profile for kernel in device),
            "longest": trace.longest((k for device in profile for k in device), args.steps),
        }


def _compile(
    args: argparse.Namespace, configs: dict[str, Config], batch_size: int
) -> dict[str, Program]:
    """Compiles the steps side by side; they share one state."""
    state = make_state(configs[BASELINE], args.image_size)
    lowered = {
        method: lower_step(config, args.image_size, batch_size, state)
        for method, config in configs.items()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda step: step.compile(), lowered.values())
        return dict(zip(lowered, compiled, strict=True))


def compiled_peak(step: Program) -> int:
    """Returns the bytes that the compiled step needs at once, by its own account."""
    memory = step.compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _memory(step: Program) -> dict[str, Any]:
    """Runs a step for the first time, and compares the peak of memory before and after.

    A peak never falls: steps that need less must have been run before.
    """
    device = jax.devices()[0]
    before = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    jax.block_until_ready(step.run())
    after = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "compiled_peak_GiB": compiled_peak(step) / 2**30,
        "measured_peak_GiB": after / 2**30,
        "peak_is_of_this_step": after > before,
    }


def several(run: Callable[[], Any], steps: int) -> Callable[[], Any]:
    """Makes a function that issues some steps one after the other and waits for none."""

    def issue() -> Any:
        for _ in range(steps - 1):
            run()
        return run()

    return issue


def _speed(
    args: argparse.Namespace, config: Config, step: Program, images: float
) -> dict[str, Any]:
    size = (args.image_size, args.image_size)
    # Backward is twice forward.
    flops = 3 * forward_flops_per_image(config, size) * images
    calls = flash_calls(step.compiled.as_text())
    return {
        "images_per_second": images,
        "mfu": flops / args.ceilings.flops,
        **{f"flash_{direction}": number for direction, number in calls.items()},
    }
