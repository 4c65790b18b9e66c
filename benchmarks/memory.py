"""Memory of the compiled train step and forward pass, by the compiler's own account.

    python -m benchmarks.memory --image-sizes=224 --batch-size=64

`peak` is what must be held at once: arguments, results and temporaries, less what is
updated in place. `donated` is the share of the state that is updated in place.
"""

import argparse
from typing import Any

import jax

from benchmarks import timing
from benchmarks.programs import (
    ALL_METHODS,
    compile_program,
    make_batch,
    make_state,
    make_training,
    model_config,
)
from vmoe_prc.models import create_model

MIB = 2**20


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=1)
    parser.add_argument("--image-sizes", type=timing.integers, default=[224])
    parser.add_argument("--batch-size", type=int, default=64, help="images; a multiple of 8")
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    parser.add_argument("--methods", type=timing.names, default=ALL_METHODS)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    timing.report(args, [row for size in args.image_sizes for row in measure(args, size)])


def measure(args: argparse.Namespace, image_size: int) -> list[dict[str, Any]]:
    """Compiles each arm at one image size; the first row is the dense model's."""
    arms = {"dense": (None, False)} | {f"V-MoE {m}": (m, False) for m in args.methods}
    arms |= {f"PRC {method}": (method, True) for method in args.methods[-1:]}
    rows: list[dict[str, Any]] = []
    for name, (method, prc) in arms.items():
        config = model_config(args.model, image_size, method, args.dtype)
        state = make_state(config, image_size)
        step = make_training(config, image_size, args.batch_size, state, prc=prc).step.compiled
        model = create_model(config, deterministic=True)
        images = make_batch(image_size, args.batch_size)["image"]
        forward = compile_program(model.apply, {"params": state.value.params}, images).compiled
        used, state_bytes = step.memory_analysis(), tree_bytes(state.value)
        base = rows[0] if rows else None
        peaks = {"step": peak_bytes(step) / MIB, "forward": peak_bytes(forward) / MIB}
        rows.append(
            {
                "px": image_size,
                "arm": name,
                "state_mib": state_bytes / MIB,
                "step_peak_mib": peaks["step"],
                "step_to_dense": peaks["step"] / (base or {}).get("step_peak_mib", peaks["step"]),
                "forward_peak_mib": peaks["forward"],
                "donated": used.alias_size_in_bytes / state_bytes,
            }
        )
    return rows


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled function needs at once."""
    used = compiled.memory_analysis()
    held = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return held - used.alias_size_in_bytes


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
