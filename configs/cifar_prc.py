"""Fine-tunes V-MoE-S/32 with PRC on CIFAR-10 or CIFAR-100 at 128 px.

    python -m vmoe_prc.main --config=configs/cifar_prc.py:dataset=cifar100 \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

Arguments: `dataset=cifar10|cifar100`, `k=1` one expert per token, `prc=off` the V-MoE
baseline, `seed=N`. Published top-1 (doi 10.1109/OJSP.2025.3536853): CIFAR-10 PRC 95.12 (k=1)
and 95.36 (k=2), V-MoE 94.81 and 95.20; CIFAR-100 PRC 82.12 and 82.27, V-MoE 81.18 and 81.38.
"""

from vmoe_prc.config import ConfigError, complete, nearest, parse_arguments
from vmoe_prc.recipes import fine_tune

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, dataset="cifar10", k=2, prc=True, diagonal="matrix", seed=0)
    if args.dataset not in NUM_CLASSES:
        allowed = f"expected one of {', '.join(NUM_CLASSES)}"
        near = nearest(args.dataset, NUM_CLASSES)
        raise ConfigError("config argument 'dataset'", args.dataset, allowed, near)
    return complete(
        fine_tune(
            args,
            dataset=args.dataset,
            splits={"train": "train[:98%]", "val": "train[98%:]", "test": "test"},
            num_classes=NUM_CLASSES[args.dataset],
            image_size=128,
        )
    )
