r"""Computes, without devices, what a recipe's training step sends and where its state lies.

    python -m benchmarks.traffic --config=configs/imagenet_prc.py --image-size=224 \
        --devices=64 --partitions=8 [--shard-dense-params]

`arrays` and `MB` are per device and step in float32, `MB sent` what leaves the
device; `docs/PARALLELISM.md` has the formula, and tests hold compiled steps to it.
"""

import argparse
import math

from benchmarks.timing import format_table
from vmoe_prc.config import check_batch, complete
from vmoe_prc.config.files import read_config_file
from vmoe_prc.models import create_model
from vmoe_prc.models.traffic import Traffic, step_traffic
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.memory import device_bytes
from vmoe_prc.runtime.mesh import abstract_mesh
from vmoe_prc.steps.state import TrainState, abstract_train_state

MEGABYTE = 1e6
# Longer than any warm-up; nothing here depends on it.
TOTAL_STEPS = 10**9


def main(argv: list[str] | None = None) -> None:
    """Prints the traffic of a step, and the bytes of the state on a device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a recipe and its arguments")
    parser.add_argument("--image-size", type=int, required=True, help="side in pixels")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--partitions", type=int, required=True, help="num_expert_partitions")
    parser.add_argument("--shard-dense-params", action="store_true")
    args = parser.parse_args(argv)
    traffic, state = describe(args)
    rows = [
        {
            "sent": row.what,
            "collective": row.collective,
            "over": " x ".join(row.axes),
            "devices": row.devices,
            "arrays": row.arrays,
            "MB": row.bytes / MEGABYTE,
            "MB sent": row.sent / MEGABYTE,
        }
        for row in traffic
    ]
    print(format_table(rows))
    print(f"state on a device: {device_bytes(state) / MEGABYTE:.1f} MB")


def describe(args: argparse.Namespace) -> tuple[list[Traffic], TrainState]:
    """Returns the traffic of the recipe's step, and its state as shapes with shardings."""
    config = read_config_file(args.config, "--config").to_dict()
    config = complete({**config, "num_expert_partitions": args.partitions}).to_dict()
    mesh = abstract_mesh(args.devices, args.partitions)
    model = create_model(
        config["model"], deterministic=False, shard_kernels=args.shard_dense_params
    )
    consistency = config["consistency"] and config["consistency"]["name"]
    views = (2,) if consistency else ()
    batch_shape = (config["dataset"]["train"]["batch_size"], *views)
    sides = (args.image_size, args.image_size, 3)
    check_batch(config, "dataset.train", (*batch_shape, *sides), args.devices)
    image_shape = (math.prod(batch_shape), *sides)
    state = abstract_train_state(
        model,
        create_optimizer(total_steps=TOTAL_STEPS, **config["optimizer"]),
        image_shape,
        mesh,
        config["params_axis_resources"],
        use_ema=config["ema_decay"] is not None,
    )
    return step_traffic(model, state.params, mesh, image_shape, consistency), state


if __name__ == "__main__":
    main()
