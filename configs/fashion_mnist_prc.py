"""A small V-MoE with PRC on Fashion-MNIST: 60,000 real images of 28x28 pixels.

    python -m vmoe_prc.data.prepare fashion_mnist
    python -m vmoe_prc.main --config=configs/fashion_mnist_prc.py

Arguments: `k=1` one expert a token, `prc=off` the V-MoE baseline, `seed=N`.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import EVALUATION_CAPACITY, adam, fewshot, finish, router_losses, small_model

IMAGES_PER_STEP = 128
IMAGE_SIZE, PATCH_SIZE = 32, 4
NUM_CLASSES = 10
ONE_VIEW = f"decode|inception_crop({IMAGE_SIZE}, 40, 100)|flip_lr|{finish(NUM_CLASSES)}"
TWO_VIEWS = (
    f"decode|two_views({IMAGE_SIZE}, (40, 100), (40, 100))|flip_lr|{finish(NUM_CLASSES, True)}"
)
WHOLE = f"decode|resize({IMAGE_SIZE})|{finish(NUM_CLASSES)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, seed=0)
    fashion = functools.partial(dict, name="fashion_mnist", batch_size=IMAGES_PER_STEP)
    pairs = {"process": TWO_VIEWS, "batch_size": IMAGES_PER_STEP // 2}
    return complete(
        {
            "description": f"Fashion-MNIST, E=8, K={args.k}, Last 2",
            "seed": args.seed,
            "train_steps": 2_000,
            "dataset": {
                "train": fashion(split="train[:95%]", shuffle_buffer=20_000)
                | (pairs if args.prc else {"process": ONE_VIEW}),
                "val": fashion(split="train[95%:]", process=WHOLE),
                "test": fashion(split="test", process=WHOLE),
                "test_pairs": fashion(split="test[:20%]") | pairs,
            },
            "model": small_model(
                NUM_CLASSES, IMAGE_SIZE, PATCH_SIZE, experts=8, k=args.k, layers=(3, 5)
            ),
            "loss": {"name": "softmax_xent"},
            **router_losses(args.prc),
            "optimizer": adam(
                "warmup_cosine_decay", peak_value=2e-3, end_value=1e-5, warmup_steps=200
            ),
            "evaluate": {"every_steps": 500, "model_overrides": EVALUATION_CAPACITY},
            "save_checkpoint": {"every_steps": 500},
            # What its representations are worth on other images.
            "fewshot": fewshot(
                {"digits": ("digits", "train[:80%]", "train[80%:]", "test")},
                IMAGE_SIZE,
                IMAGES_PER_STEP,
            ),
        }
    )
