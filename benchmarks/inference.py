"""Inference: images a second of large batches, and how long a small batch takes.

    python -m benchmarks.inference --batch-sizes=1,8,64

Experts have room for nearly all tokens, as in evaluation (capacity 4). `flops` is the
ratio of operations to the dense model's, which an ideal ratio of times would equal.
"""

import argparse
import statistics
from typing import Any

from benchmarks import timing
from benchmarks.programs import (
    ALL_METHODS,
    compile_program,
    flops_ratio,
    make_batch,
    make_state,
    model_config,
    padded_flops_ratio,
)
from vmoe_prc.config import Config
from vmoe_prc.models import create_model
from vmoe_prc.recipes import IMAGES_PER_GROUP


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=15)
    parser.add_argument("--image-sizes", type=timing.integers, default=[224])
    parser.add_argument("--batch-sizes", type=timing.integers, default=[1, 8, 32])
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    parser.add_argument("--methods", type=timing.names, default=ALL_METHODS)
    parser.add_argument("--capacity-factor", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    rows = []
    for image_size in args.image_sizes:
        for batch_size in args.batch_sizes:
            rows += measure(args, image_size, batch_size)
    timing.report(args, rows)


def measure(args: argparse.Namespace, image_size: int, batch_size: int) -> list[dict[str, Any]]:
    """Times the forward passes of one batch size in turns."""
    images = make_batch(image_size, batch_size)["image"]
    configs = {"dense": _config(args, image_size, batch_size, None)}
    configs |= {m: _config(args, image_size, batch_size, m) for m in args.methods}
    functions = {}
    for name, config in configs.items():
        variables = {"params": make_state(config, image_size).value.params}
        model = create_model(config, deterministic=True)
        functions[name] = compile_program(model.apply, variables, images).run
    times = timing.take_turns(functions, args.repetitions)
    return [
        {
            "px": image_size,
            "batch": batch_size,
            "arm": name,
            "images_per_second": batch_size / row["seconds"],
            "median_ms": 1e3 * statistics.median(times[name].wall),
            "to_dense": row["ratio"],
            "low": row["low"],
            "high": row["high"],
            "cpu_to_dense": row["cpu_ratio"],
            "flops": flops_ratio(configs[name], configs["dense"], image_size),
            "padded_flops": padded_flops_ratio(configs[name], configs["dense"], image_size),
        }
        for name, row in timing.compare(times, "dense").items()
    ]


def _config(
    args: argparse.Namespace, image_size: int, batch_size: int, method: str | None
) -> Config:
    config = model_config(args.model, image_size, method, args.dtype, args.capacity_factor)
    moe = config["encoder"]["moe"]
    # A batch smaller than a group of training is one group.
    moe["group_size"] = moe["group_size"] // IMAGES_PER_GROUP * min(batch_size, IMAGES_PER_GROUP)
    return config


if __name__ == "__main__":
    main()
