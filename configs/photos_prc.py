"""A small V-MoE with PRC on your own images, from scratch: minutes on 2 cores for some hundreds.

    python -m vmoe_prc.main --config=configs/photos_prc.py:dir=PATH

PATH holds CLASS/*.jpg and so on, or train/CLASS/ and test/CLASS/. Steps, batch and intervals follow
from the number of training images, see `vmoe_prc.recipes.sizes`; the log begins with them. Other
arguments: `size=64` the side of the images in pixels, a multiple of 8; `steps=N`; `k=1` one expert
per token; `prc=off` the V-MoE baseline; `seed=N`. `folder_prc.py` fine-tunes a large model instead.
`dataset=parquet,dir=PATH` takes other formats, and `dataset=cifar10` any prepared data set, see
docs/DATA.md.
"""

import functools

from vmoe_prc.config import ConfigError, complete, parse_arguments
from vmoe_prc.recipes import (
    DECODE_PHOTO,
    EVALUATION_CAPACITY,
    adam,
    finish,
    router_losses,
    small_model,
)
from vmoe_prc.recipes.images import IMAGE_ARGUMENTS, find_images
from vmoe_prc.recipes.sizes import derive_sizes, with_sizes

PATCHES_PER_SIDE = 8


def get_config(arguments: str = ""):
    args = parse_arguments(
        arguments,
        **IMAGE_ARGUMENTS,
        size=64,
        steps=0,
        k=2,
        prc=True,
        diagonal="matrix",
        seed=0,
    )
    if args.size < PATCHES_PER_SIDE or args.size % PATCHES_PER_SIDE:
        expected = f"must be a multiple of {PATCHES_PER_SIDE}"
        raise ConfigError("config argument 'size'", args.size, expected)
    images = find_images(args)
    num_classes = images.num_classes
    sizes = derive_sizes(
        images.sizes["train"],
        images.sizes["test"],
        views_per_image=150,
        most_views=256,
        least_steps=300,
        most_steps=10_000,
        steps=args.steps,
    )
    one_view = f"{DECODE_PHOTO}|inception_crop({args.size}, 50, 100)|flip_lr|{finish(num_classes)}"
    views = f"two_views({args.size}, (50, 100), (50, 100))"
    two_views = f"{DECODE_PHOTO}|{views}|flip_lr|{finish(num_classes, two_views=True)}"
    whole = f"{DECODE_PHOTO}|resize({args.size})|{finish(num_classes)}"
    photos = functools.partial(dict, **images.place, cache="loaded")
    train, test = images.splits["train"], images.splits["test"]
    config = {
        "description": f"photos of {num_classes} classes, E=4, K={args.k}",
        "seed": args.seed,
        "dataset": {
            "train": photos(split=train, process=two_views if args.prc else one_view),
            "test": photos(split=test, process=whole),
            "test_pairs": photos(split=test, process=two_views),
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
            warmup_steps=sizes.warmup_steps,
        ),
        "evaluate": {"model_overrides": EVALUATION_CAPACITY},
    }
    return complete(with_sizes(config, sizes))
