"""Exports in their own runtimes: sizes, latency and throughput.

    python -m benchmarks.exports --batch-sizes=1,8,32

The parameters are random, since times depend on sizes alone. Images are routed alone, and no token
is dropped. `dense` is a vision transformer without experts whose MLPs are widened until it has as
many parameters as the other uses for a token, in onnxruntime. Ratios are to the JAX program, in
turns on the same cores.
"""

import argparse
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import tensorflow as tf

from benchmarks import timing
from benchmarks.programs import NUM_CLASSES
from configs import imagenet_prc
from vmoe_prc.config import complete
from vmoe_prc.export.model_card import count_active
from vmoe_prc.export.onnx import INPUT, build_onnx
from vmoe_prc.export.saved_model import build_module
from vmoe_prc.export.stablehlo import export_program
from vmoe_prc.models import create_model
from vmoe_prc.predict.model import TrainedModel
from vmoe_prc.recipes import finish, vmoe_model

Function = Callable[[np.ndarray], Any]


class Arm(NamedTuple):
    """A program, and what it takes to keep.

    Attributes:
      run: Classifies images.
      active: Parameters that a token uses.
      megabytes: Size of its file or folder.
    """

    run: Function
    active: int
    megabytes: float


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=15)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-sizes", type=timing.integers, default=[1, 8, 32])
    parser.add_argument("--model", default="ViT-S/32, E=8, K=2, Last 2")
    args = parser.parse_args(argv)
    arms = make_arms(args.model, args.image_size)
    timing.report(args, [row for size in args.batch_sizes for row in measure(args, arms, size)])


def make_arms(description: str, image_size: int) -> dict[str, Arm]:
    """Builds all programs of a model, the JAX program first."""
    model = _random_model(vmoe_model(description, image_size, NUM_CLASSES), image_size)
    active = count_active(model.params, model.config)
    forward = jax.jit(model.forward)
    program, module = export_program(model), build_module(model)
    total = sum(x.nbytes for x in jax.tree.leaves(model.params))
    call = jax.jit(program.call)
    return {
        "jax": Arm(forward, active, total / 1e6),
        "stablehlo": Arm(call, active, len(program.serialize()) / 1e6),
        "saved_model": Arm(lambda x: module.pixels(tf.constant(x)), active, _saved_size(module)),
        "onnx": _onnx_arm(model),
        "dense": _onnx_arm(_dense(description, image_size, active)),
    }


def measure(args: argparse.Namespace, arms: dict[str, Arm], batch_size: int) -> list[dict]:
    """Times the arms in turns on one batch size."""
    shape = (batch_size, args.image_size, args.image_size, 3)
    pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def bound(arm: Arm) -> Callable[[], Any]:
        return lambda: arm.run(pixels)

    functions = {name: bound(arm) for name, arm in arms.items()}
    times = timing.take_turns(functions, args.repetitions)
    return [
        {
            "batch": batch_size,
            "arm": name,
            "megabytes": arms[name].megabytes,
            "active": arms[name].active,
            "median_ms": 1e3 * statistics.median(times[name].wall),
            "images_per_second": batch_size / row["seconds"],
            "to_jax": row["ratio"],
            "low": row["low"],
            "high": row["high"],
            "cpu_to_jax": row["cpu_ratio"],
        }
        for name, row in timing.compare(times, "jax").items()
    ]


def _random_model(options: dict[str, Any], image_size: int) -> TrainedModel:
    config = imagenet_prc.get_config()
    with config.unlocked():
        config.model = options
        config.dataset.test.process = f"decode|resize({image_size})|{finish(NUM_CLASSES)}"
    model = TrainedModel("random", complete(config), {})
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    network = create_model(model.model_options(model.image_size), deterministic=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    model.params = jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.02, x.shape)), shapes)
    return model


def _dense(description: str, image_size: int, active: int) -> TrainedModel:
    """Makes the dense model whose parameters are `active`, up to the rounding of a width."""
    options = vmoe_model(description, image_size, NUM_CLASSES)
    options["encoder"]["moe"]["layers"] = ()
    plain = _random_model(options, image_size)
    count = sum(x.size for x in jax.tree.leaves(plain.params))
    per_width = options["encoder"]["num_layers"] * (2 * options["hidden_size"] + 1)
    options["encoder"]["mlp_dim"] += round((active - count) / per_width)
    return _random_model(options, image_size)


def _onnx_arm(model: TrainedModel) -> Arm:
    content = build_onnx(model).SerializeToString()
    session = onnxruntime.InferenceSession(content)
    active = count_active(model.params, model.config)
    return Arm(lambda x: session.run(["logits"], {INPUT: x}), active, len(content) / 1e6)


def _saved_size(module: tf.Module) -> float:
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"pixels": module.pixels})
        files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / 1e6


if __name__ == "__main__":
    main()
