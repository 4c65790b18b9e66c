"""The bfloat16 train step on one NVIDIA GPU: how near it comes to what the GPU can do.

    python -m benchmarks.gpu --output=workdir/benchmarks/gpu.json

Prints three tables. The first has images/s, the model FLOP utilisation, the speed relative
to the one-hot dispatch of the V-MoE paper in the same run (`to_baseline`), how many calls of
flash attention the compiled step has, and which share of the time the GPU was busy while
steps were issued without waiting. The second is a roofline, by the compiler's account of
FLOPs and bytes; the third shows which kernels the time goes to.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import timing, trace
from benchmarks.programs import Program, make_state, make_training, model_config
from benchmarks.roofline import flash_calls, roofline
from vmoe_prc.config import Config
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.runtime.peaks import memory_bandwidth, peak_flops

DTYPE = "bfloat16"
BASELINE = "einsum"
MODELS = ["ViT-S/16, E=8, K=2, Every 2", "ViT-B/16, E=8, K=2, Every 2"]


class Ceilings(NamedTuple):
    """What the device can do at most: FLOP/s and bytes/s."""

    flops: float
    bandwidth: float


class Tables(NamedTuple):
    """Rows of the three tables."""

    speed: list[dict[str, Any]]
    roofline: list[dict[str, Any]]
    kernels: list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 where there is no GPU whose peaks are known."""
    parser = timing.parser(__doc__, repetitions=10)
    parser.add_argument(
        "--models", nargs="+", default=MODELS, help="size, patch, experts, k, where"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256, help="images; a multiple of 8")
    parser.add_argument("--methods", type=timing.names, default=["gather"], help="of dispatch")
    parser.add_argument("--steps", type=int, default=10, help="steps of a repetition")
    args = parser.parse_args(argv)
    device = jax.devices()[0].device_kind
    ceilings = ceilings_of(device)
    if ceilings is None:
        print(
            f"no NVIDIA GPU with known peaks in {DTYPE}: JAX's device is {device}", file=sys.stderr
        )
        return 1
    measured = [measure(args, description, ceilings) for description in args.models]
    tables = Tables(
        *([row for rows in part for row in rows] for part in zip(*measured, strict=True))
    )
    for rows in tables[1:]:
        print(timing.format_table(rows), end="\n\n")
    timing.report(
        args, tables.speed, device=device, roofline=tables.roofline, kernels=tables.kernels
    )
    return 0


def ceilings_of(device: str) -> Ceilings | None:
    """Returns the peaks of a device by its name, or None if they are not known."""
    flops, bandwidth = peak_flops(device, DTYPE), memory_bandwidth(device)
    return Ceilings(flops, bandwidth) if flops and bandwidth else None


def measure(args: argparse.Namespace, description: str, ceilings: Ceilings) -> Tables:
    """Times one model with each kind of dispatch in turns, then traces each."""
    methods = [*args.methods, BASELINE]
    configs = {m: model_config(description, args.image_size, m, DTYPE) for m in methods}
    state = make_state(configs[BASELINE], args.image_size)
    steps = {
        method: make_training(config, args.image_size, args.batch_size, state).step
        for method, config in configs.items()
    }
    functions = {name: several(step.run, args.steps) for name, step in steps.items()}
    times = timing.compare(timing.take_turns(functions, args.repetitions), BASELINE)
    tables = Tables([], [], [])
    for method, step in steps.items():
        arm = {"model": description, "dispatch": method}
        seconds = times[method]["seconds"] / args.steps
        profile = trace.kernels(trace.record(step.run, args.steps))
        speed = _speed(args, configs[method], step, seconds, ceilings)
        ratios = {
            "to_baseline": 1 / times[method]["ratio"],
            "low": 1 / times[method]["high"],
            "high": 1 / times[method]["low"],
            "busy": min(map(trace.busy_share, profile), default=None),
        }
        tables.speed.append(arm | speed | ratios)
        cost = step.compiled.cost_analysis()
        tables.roofline.append(arm | roofline(cost, seconds, *ceilings))
        kinds = trace.by_kind(kernel for device in profile for kernel in device)
        tables.kernels.extend(arm | {"kernels": kind} | row for kind, row in kinds.items())
    return tables


def several(run: Callable[[], Any], steps: int) -> Callable[[], Any]:
    """Makes a function that issues some steps one after the other and waits for none."""

    def issue() -> Any:
        for _ in range(steps - 1):
            run()
        return run()

    return issue


def _speed(
    args: argparse.Namespace, config: Config, step: Program, seconds: float, ceilings: Ceilings
) -> dict[str, Any]:
    images = args.batch_size / seconds
    size = (args.image_size, args.image_size)
    # Backward is twice forward.
    flops = 3 * forward_flops_per_image(config, size) * images
    calls = flash_calls(step.compiled.as_text())
    return {
        "images_per_second": images,
        "mfu": flops / ceilings.flops,
        **{f"flash_{direction}": number for direction, number in calls.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
