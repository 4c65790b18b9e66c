"""What PRC costs: its train step over V-MoE's with the same number of images.

    python -m benchmarks.prc_cost --image-sizes=224,384 --batch-size=16

Both arms see the same number of images, PRC as pairs of views. PRC pairs the patches and
correlates the gates; V-MoE's balance losses are off, but still reported.
"""

import argparse
from typing import Any

from benchmarks import timing
from benchmarks.programs import make_state, make_training, model_config


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=9)
    parser.add_argument("--image-sizes", type=timing.integers, default=[224, 384])
    parser.add_argument("--batch-size", type=int, default=16, help="images; a multiple of 8")
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    parser.add_argument("--method", default="gather")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    timing.report(args, [row for size in args.image_sizes for row in measure(args, size)])


def measure(args: argparse.Namespace, image_size: int) -> list[dict[str, Any]]:
    """Times both arms at one image size in turns."""
    config = model_config(args.model, image_size, args.method, args.dtype)
    state = make_state(config, image_size)
    functions = {
        name: make_training(config, image_size, args.batch_size, state, prc=prc).step.run
        for name, prc in (("V-MoE", False), ("PRC", True))
    }
    times = timing.take_turns(functions, args.repetitions)
    rows = timing.compare(times, "V-MoE")
    return [{"px": image_size, "arm": name, **row} for name, row in rows.items()]


if __name__ == "__main__":
    main()
