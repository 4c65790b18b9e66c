"""Passes over images that need more than the logits, compared with the forward pass.

    python -m benchmarks.evaluation --batch-size=32

The passes are `vmoe_prc.evaluation.splits` with one view and with two (which compare the
experts of matched patches), the routing analysis, and the attack FGSM (forward, and
backward to the pixels).
"""

import argparse
from typing import Any

import jax

from benchmarks import timing
from benchmarks.programs import compile_program, make_batch, make_state, model_config
from vmoe_prc.analysis.attacks import make_attack
from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.evaluation.step import make_eval_step
from vmoe_prc.models import create_model


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=9)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32, help="images; a multiple of 8")
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    parser.add_argument("--method", default="gather")
    parser.add_argument("--capacity-factor", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    timing.report(args, measure(args))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times all passes over one batch in turns."""
    config = model_config(
        args.model, args.image_size, args.method, args.dtype, args.capacity_factor
    )
    params = make_state(config, args.image_size).value.params
    model = create_model(config, deterministic=True)
    one, two = (_masked(args, two_views) for two_views in (False, True))
    evaluation = make_eval_step(model, {"name": "softmax_xent"})
    attack = make_attack(model, {"name": "softmax_xent"}, num_steps=1)

    def forward(params, images):
        return model.apply({"params": params}, images)[0]

    programs = {
        "forward": compile_program(forward, params, one["image"]),
        "evaluation": compile_program(evaluation, params, one),
        "evaluation of pairs": compile_program(evaluation, params, two),
        "fgsm": compile_program(attack, params, one["image"], one["labels"], 1.0),
        "routing": compile_program(make_routing_step(model), params, one["image"]),
    }
    times = timing.take_turns({name: p.run for name, p in programs.items()}, args.repetitions)
    return [{"pass": name, **row} for name, row in timing.compare(times, "forward").items()]


def _masked(args: argparse.Namespace, two_views: bool) -> dict[str, Any]:
    batch = make_batch(args.image_size, args.batch_size, two_views=two_views)
    return {**batch, "mask": jax.numpy.ones(len(batch["image"]), bool)}


if __name__ == "__main__":
    main()
