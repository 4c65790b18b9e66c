"""A small V-MoE with PRC on Fashion-MNIST: 60,000 real images of 28x28 pixels.

    python -m vmoe_prc.data.prepare fashion_mnist
    python -m vmoe_prc.main --config=configs/fashion_mnist_prc.py

Arguments: `k=1` one expert per token, `prc=off` the V-MoE baseline, `seed=N`,
`teacher=PATH` a run of a dense model (`:prc=off --config.model.encoder.moe.layers=()`) whose
routers teach the routers of this one, without PRC (TGR-MoE). Both arms see the same crops and the
same number of images; `configs/studies/fashion_mnist_tuning.py` chose what is chosen here.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import (
    EVALUATION_CAPACITY,
    adam,
    fewshot,
    finish,
    router_losses,
    small_model,
    teacher_guided,
)

IMAGES_PER_STEP = 64
IMAGE_SIZE, PATCH_SIZE = 32, 8
NUM_CLASSES = 10
SMALLEST_CROP = 70
STEPS = 6_000
TRAINING_PART = 95  # % of the training images; the others are for validation


def one_view(smallest_crop: int = SMALLEST_CROP) -> str:
    """Returns the preprocessing of one view; the crop's smallest area is in %."""
    return (
        f"decode|inception_crop({IMAGE_SIZE}, {smallest_crop}, 100)|flip_lr|{finish(NUM_CLASSES)}"
    )


def two_views(smallest_crop: int = SMALLEST_CROP) -> str:
    """Returns the preprocessing of two views with the crops of `one_view`."""
    area = f"({smallest_crop}, 100)"
    views = f"two_views({IMAGE_SIZE}, {area}, {area})"
    return f"decode|{views}|flip_lr|{finish(NUM_CLASSES, two_views=True)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, diagonal="matrix", seed=0, teacher="")
    pairs_of_views = args.prc and not args.teacher
    fashion = functools.partial(dict, name="fashion_mnist", batch_size=IMAGES_PER_STEP)
    pairs = {"process": two_views(), "batch_size": IMAGES_PER_STEP // 2}
    whole = f"decode|resize({IMAGE_SIZE})|{finish(NUM_CLASSES)}"
    config = {
        "description": f"Fashion-MNIST, E=8, K={args.k}, Last 2",
        "seed": args.seed,
        "train_steps": STEPS,
        "dataset": {
            "train": fashion(split=f"train[:{TRAINING_PART}%]", shuffle_buffer=20_000)
            | (pairs if pairs_of_views else {"process": one_view()}),
            "val": fashion(split=f"train[{TRAINING_PART}%:]", process=whole),
            "test": fashion(split="test", process=whole),
            "test_pairs": fashion(split="test[:20%]") | pairs,
        },
        "model": small_model(
            NUM_CLASSES, IMAGE_SIZE, PATCH_SIZE, experts=8, k=args.k, layers=(1, 3)
        ),
        "loss": {"name": "softmax_xent"},
        **router_losses(args.prc, diagonal=args.diagonal),
        "optimizer": adam("warmup_cosine_decay", peak_value=4e-3, end_value=1e-5, warmup_steps=300),
        "evaluate": {"every_steps": 3_000, "model_overrides": EVALUATION_CAPACITY},
        "save_checkpoint": {"every_steps": 1_000},
        "report_progress": {"every_steps": 200},
        # What its representations are worth on other images.
        "fewshot": fewshot(
            {"digits": ("digits", "train[:80%]", "train[80%:]", "test")},
            IMAGE_SIZE,
            IMAGES_PER_STEP,
        ),
    }
    return complete(teacher_guided(config, args.teacher) if args.teacher else config)
