"""What one NVIDIA GPU does: the same numbers as a CPU, and how near to its peaks it comes.

    python -m benchmarks.gpu --output=workdir/benchmarks/gpu.jsonl

Prints a line of JSON for each result as soon as it is there; a part that fails is a line with
its error, and the others still run. Parts:

* `parity`: logits, loss, gradients and routing of a small model on GPU and CPU, in float32;
  and in bfloat16 the dropless experts against buffers that drop nothing.
* `attention`: cuDNN's kernel against XLA's attention, forward and backward, for even and odd
  numbers of tokens.
* `experts`: each grouped product of `models.grouped_matmul`, forward and both gradients.
* `training`: the bfloat16 train step with each kind of dispatch: images/s, model FLOP
  utilisation, speed relative to the one-hot dispatch of the V-MoE paper in the same run, peak
  memory measured and compiled, calls of flash attention, share of the time that the GPU is
  busy, the kernels that the time goes to, and a roofline by the compiler's account of FLOPs
  and bytes.
"""

import argparse
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks import gpu_kernels, gpu_parity, gpu_training, timing
from vmoe_prc.runtime.mesh import create_mesh

Row = dict[str, Any]
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "parity": gpu_parity.parity,
    "attention": gpu_kernels.attention_rows,
    "experts": gpu_kernels.expert_rows,
    "training": gpu_training.training,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 where a part failed, or there is no GPU with known peaks."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--parts", type=timing.names, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ViT-S/32, E=8, K=2, Last 2", "ViT-B/16, E=8, K=2, Every 2"],
        help="of the part training: size, patch, experts, k, where",
    )
    parser.add_argument(
        "--batch-sizes", type=timing.integers, default=[1024, 256], help="images, by model"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument(
        "--methods", type=timing.names, default=["gather", "dropless"], help="of dispatch"
    )
    parser.add_argument("--steps", type=int, default=5, help="train steps of a repetition")
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    args.ceilings = gpu_training.ceilings_of(device.device_kind)
    if args.ceilings is None:
        print(
            f"no NVIDIA GPU with known peaks in {gpu_training.DTYPE}: JAX's device is "
            f"{device.device_kind}",
            file=sys.stderr,
        )
        return 1
    write = _writer(args.output)
    write({"part": "device", "device": device.device_kind, **timing.machine()})
    failed = [part for part in args.parts if not _run(part, args, write)]
    return 1 if failed else 0


def _run(part: str, args: argparse.Namespace, write: Callable[[Row], None]) -> bool:
    start = time.perf_counter()
    try:
        # One GPU, and the mesh that the trainer would have: kernels are chosen by it.
        with jax.set_mesh(create_mesh(1, jax.devices()[:1])):
            for row in PARTS[part](args):
                write({"part": part, **row})
    except Exception as error:
        # What the other parts find is worth having.
        traceback.print_exc()
        write({"part": part, "error": f"{type(error).__name__}: {error}"[:2000]})
        return False
    write({"part": part, "seconds": time.perf_counter() - start})
    return True


def _writer(path: pathlib.Path | None) -> Callable[[Row], None]:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def write(row: Row) -> None:
        line = json.dumps(row, default=float)
        print(line, flush=True)
        if path is not None:
            with path.open("a") as file:
                file.write(line + "\n")

    return write


if __name__ == "__main__":
    sys.exit(main())
