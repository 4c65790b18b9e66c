"""The train step of V-MoE and PRC against a dense ViT and against the FLOP-ideal.

    python -m benchmarks.train_step --image-sizes=224,384 --batch-size=16

The ideal step does the operations that the sparse model asks for at the rate of the dense
step: (dense step - its update) x FLOP ratio + own update, since the optimiser's time grows
with the parameters, not with the operations. `to_padded` compares with an ideal that also
counts the experts' work on the free rows of their buffers.
"""

import argparse
from typing import Any

from benchmarks import timing
from benchmarks.programs import (
    ALL_METHODS,
    flops_ratio,
    make_state,
    make_training,
    model_config,
    padded_flops_ratio,
)
from vmoe_prc.config import Config

DENSE, DENSE_UPDATE, UPDATE = "dense", "dense update", "update"


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--image-sizes", type=timing.integers, default=[224, 384])
    parser.add_argument("--batch-size", type=int, default=16, help="images; a multiple of 8")
    parser.add_argument("--model", default="ViT-S/32, E=8", help="size, patch and experts")
    parser.add_argument("--k", type=timing.integers, default=[1, 2])
    parser.add_argument("--where", default="Last 2", help="the blocks with experts")
    parser.add_argument("--methods", type=timing.names, default=ALL_METHODS)
    parser.add_argument("--prc-method", default="gather", help="dispatch of the PRC arm")
    parser.add_argument("--capacity-factor", type=float, default=1.05)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    rows = [row for size in args.image_sizes for row in measure(args, size)]
    timing.report(args, rows)


def arms(args: argparse.Namespace, image_size: int) -> dict[str, Config]:
    """Configs of the models to time, by name; the dense one comes first."""

    def config(k: int, method: str | None) -> Config:
        description = f"{args.model}, K={k}, {args.where}"
        return model_config(description, image_size, method, args.dtype, args.capacity_factor)

    result = {DENSE: config(1, None)}
    for k in args.k:
        result |= {f"V-MoE k={k} {method}": config(k, method) for method in args.methods}
        result[f"PRC k={k} {args.prc_method}"] = config(k, args.prc_method)
    return result


def measure(args: argparse.Namespace, image_size: int) -> list[dict[str, Any]]:
    """Times the arms at one image size in turns."""
    configs = arms(args, image_size)
    # All sparse models have parameters of the same shapes, and share them.
    states = {True: make_state(configs[DENSE], image_size)}
    states[False] = make_state(list(configs.values())[-1], image_size)
    functions = {}
    for name, config in configs.items():
        state, prc = states[name == DENSE], name.startswith("PRC")
        training = make_training(config, image_size, args.batch_size, state, prc=prc)
        functions[name] = training.step.run
        functions[DENSE_UPDATE if name == DENSE else UPDATE] = training.update.run
    times = timing.take_turns(functions, args.repetitions)
    return [_row(name, configs, image_size, times) for name in configs]


def _row(
    name: str, configs: dict[str, Config], image_size: int, times: dict[str, timing.Times]
) -> dict[str, Any]:
    own, dense = times[name], times[DENSE]
    update = times[DENSE_UPDATE if name == DENSE else UPDATE]

    def over(ratio: float) -> dict[str, float]:
        ideal = timing.Times(
            *(
                [(d - du) * ratio + u for d, du, u in zip(*parts, strict=True)]
                for parts in zip(dense, times[DENSE_UPDATE], update, strict=True)
            )
        )
        return timing.compare({"own": own, "ideal": ideal}, "ideal")["own"]

    flops = {
        count.__name__: count(configs[name], configs[DENSE], image_size)
        for count in (flops_ratio, padded_flops_ratio)
    }
    to_dense = timing.compare({"own": own, "dense": dense}, "dense")["own"]
    ideal, padded = over(flops["flops_ratio"]), over(flops["padded_flops_ratio"])
    return {
        "px": image_size,
        "arm": name,
        "seconds": to_dense["seconds"],
        "to_dense": to_dense["ratio"],
        "flops": flops["flops_ratio"],
        "to_ideal": ideal["ratio"],
        "low": ideal["low"],
        "high": ideal["high"],
        "cpu_to_ideal": ideal["cpu_ratio"],
        "to_padded": padded["ratio"],
        "cpu_to_padded": padded["cpu_ratio"],
    }


if __name__ == "__main__":
    main()
