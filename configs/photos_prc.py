"""A small V-MoE with PRC on your own images, from scratch: minutes on 2 cores for some hundreds.

    python -m vmoe_prc.main --config=configs/photos_prc.py:dir=PATH

PATH holds CLASS/*.jpg and so on, or train/CLASS/ and test/CLASS/. Other arguments: `size=64` the
side of the images in pixels, a multiple of 8; `steps=600`; `k=1` one expert per token; `prc=off`
the V-MoE baseline; `seed=N`. `folder_prc.py` fine-tunes a large model instead.
"""

import functools

from vmoe_prc.config import ConfigError, complete, parse_arguments
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.recipes import EVALUATION_CAPACITY, adam, finish, router_losses, small_model

VIEWS_PER_STEP = 64
PATCHES_PER_SIDE = 8


def get_config(arguments: str = ""):
    args = parse_arguments(
        arguments, dir="", size=64, steps=600, k=2, prc=True, diagonal="matrix", seed=0
    )
    if args.size < PATCHES_PER_SIDE or args.size % PATCHES_PER_SIDE:
        expected = f"must be a multiple of {PATCHES_PER_SIDE}"
        raise ConfigError("config argument 'size'", args.size, expected)
    try:
        num_classes = len(scan_class_folders(args.dir or "PATH").classes)
    except ValueError as error:
        raise ConfigError("config argument 'dir'", args.dir, str(error)) from None
    # Phones and cameras store photos as they were held, with a note how to turn them.
    decode = "decode(orient=True)"
    one_view = f"{decode}|inception_crop({args.size}, 50, 100)|flip_lr|{finish(num_classes)}"
    views = f"two_views({args.size}, (50, 100), (50, 100))"
    two_views = f"{decode}|{views}|flip_lr|{finish(num_classes, two_views=True)}"
    whole = f"{decode}|resize({args.size})|{finish(num_classes)}"
    photos = functools.partial(dict, name="folder", manual_dir=args.dir, cache="loaded")
    pairs = {"process": two_views, "batch_size": VIEWS_PER_STEP // 2}
    single = {"process": one_view, "batch_size": VIEWS_PER_STEP}
    return complete(
        {
            "description": f"photos of {num_classes} classes, E=4, K={args.k}",
            "seed": args.seed,
            "train_steps": args.steps,
            "dataset": {
                "train": photos(split="train", shuffle_buffer=2_000)
                | (pairs if args.prc else single),
                "test": photos(split="test", process=whole, batch_size=VIEWS_PER_STEP),
                "test_pairs": photos(split="test") | pairs,
            },
            "model": small_model(
                num_classes,
                args.size,
                args.size // PATCHES_PER_SIDE,
                experts=4,
                k=args.k,
                layers=(1, 3),
            ),
            "loss": {"name": "softmax_xent"},
            **router_losses(args.prc, pair_class_tokens=False, diagonal=args.diagonal),
            "optimizer": adam(
                "warmup_cosine_decay",
                peak_value=2e-3,
                end_value=1e-5,
                warmup_steps=max(args.steps // 12, 1),
            ),
            "evaluate": {"every_steps": 300, "model_overrides": EVALUATION_CAPACITY},
            "save_checkpoint": {"every_steps": 300},
            "report_progress": {"every_steps": 25},
        }
    )
