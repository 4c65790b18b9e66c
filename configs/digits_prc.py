"""A small V-MoE with PRC on scikit-learn's handwritten digits: two minutes on 2 cores.

    python -m vmoe_prc.main --config=configs/digits_prc.py

Arguments: `k=1` one expert per token, `prc=off` the V-MoE baseline, `seed=N`.
The 8x8 images are enlarged to 32x32; a patch of 4x4 is one of their pixels. Both arms see
the same crops and the same number of images.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import EVALUATION_CAPACITY, adam, finish, router_losses, small_model

IMAGES_PER_STEP = 64
IMAGE_SIZE, PATCH_SIZE = 32, 4
ONE_VIEW = f"decode|inception_crop({IMAGE_SIZE}, 60, 100)|{finish(10)}"
TWO_VIEWS = f"decode|two_views({IMAGE_SIZE}, (60, 100), (60, 100))|{finish(10, True)}"
CENTRE = f"decode|resize(34)|central_crop({IMAGE_SIZE})|{finish(10)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, diagonal="matrix", seed=0)

    digits = functools.partial(dict, name="digits", cache="loaded")
    process, views = (TWO_VIEWS, 2) if args.prc else (ONE_VIEW, 1)
    return complete(
        {
            "description": f"digits, E=4, K={args.k}",
            "seed": args.seed,
            "train_steps": 600,
            "dataset": {
                "train": digits(
                    split="train",
                    process=process,
                    batch_size=IMAGES_PER_STEP // views,
                    shuffle_buffer=1438,
                ),
                "test": digits(split="test", process=CENTRE, batch_size=IMAGES_PER_STEP),
                "test_pairs": digits(
                    split="test", process=TWO_VIEWS, batch_size=IMAGES_PER_STEP // 2
                ),
            },
            "model": small_model(10, IMAGE_SIZE, PATCH_SIZE, experts=4, k=args.k, layers=(1, 3)),
            "loss": {"name": "softmax_xent"},
            **router_losses(args.prc, pair_class_tokens=False, diagonal=args.diagonal),
            "optimizer": adam(
                "warmup_cosine_decay", peak_value=4e-3, end_value=1e-5, warmup_steps=50
            ),
            "evaluate": {"every_steps": 300, "model_overrides": EVALUATION_CAPACITY},
            "save_checkpoint": {"every_steps": 300},
            "report_progress": {"every_steps": 25},
        }
    )
