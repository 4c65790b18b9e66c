"""A small V-MoE with PRC on images in which the place of a patch matters.

    python -m vmoe_prc.data.prepare cluttered_fashion_mnist --from=/usr/share/datasets/fashion-mnist
    python -m vmoe_prc.main --config=configs/places_prc.py
    python -m vmoe_prc.main --config=configs/places_prc.py:dataset=photos

`dataset=clutter` has scenes of 40x40 pixels, one garment anywhere and pieces of others;
`dataset=photos` asks which of 14 photographs of scikit-image a patch of 64x64 pixels is from, or
of the N photographs in a directory with `dir=PATH,classes=N`. Other arguments: `k=2` two experts
per token, `prc=off` the V-MoE baseline, `steps=N`, `seed=N`.

All four blocks have experts, which start with different parameters, and no token is dropped: the
model of docs/ROUTING_STUDY.md. Both arms see the same crops and the same number of images.
"""

import dataclasses
import functools

from vmoe_prc.config import ConfigError, complete, parse_arguments
from vmoe_prc.recipes import adam, finish, router_losses, small_model

IMAGES_PER_STEP = 64
PATCH_SIZE = 8
SMALLEST_CROP = 60


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set of this recipe."""

    name: str
    size: int
    num_classes: int
    validation: str | None
    steps: int


DATASETS = {
    "clutter": Images("cluttered_fashion_mnist", 40, 10, validation="validation", steps=8_000),
    "photos": Images("photo_patches", 64, 14, validation=None, steps=1_000),
}


def get_config(arguments: str = ""):
    args = parse_arguments(
        arguments,
        dataset="clutter",
        dir="",
        classes=0,
        steps=0,
        k=1,
        prc=True,
        diagonal="matrix",
        seed=0,
    )
    if args.dataset not in DATASETS:
        expected = f"expected one of {', '.join(DATASETS)}"
        raise ConfigError("config argument 'dataset'", args.dataset, expected)
    if bool(args.dir) != bool(args.classes) or (args.dir and args.dataset != "photos"):
        expected = "needs dataset=photos and classes=N, the number of photographs"
        raise ConfigError("config argument 'dir'", args.dir, expected)
    data = DATASETS[args.dataset]
    num_classes = args.classes or data.num_classes
    area = f"({SMALLEST_CROP}, 100)"
    one_view = f"decode|inception_crop({data.size}, {SMALLEST_CROP}, 100)"
    two_views = f"decode|two_views({data.size}, {area}, {area})"
    end, pair_end = finish(num_classes), finish(num_classes, two_views=True)
    single = {"process": f"{one_view}|flip_lr|{end}", "batch_size": IMAGES_PER_STEP}
    pairs = {"process": f"{two_views}|flip_lr|{pair_end}", "batch_size": IMAGES_PER_STEP // 2}
    whole = {"process": f"decode|resize({data.size})|{end}", "batch_size": IMAGES_PER_STEP}
    images = functools.partial(dict, name=data.name, manual_dir=args.dir or None, cache="loaded")
    evaluated = {"test": images(split="test") | whole}
    if data.validation:
        evaluated["val"] = images(split=data.validation) | whole
    model = small_model(
        num_classes, data.size, PATCH_SIZE, experts=8, k=args.k, layers=(0, 1, 2, 3)
    )
    moe = model["encoder"]["moe"]
    moe["split_rngs"] = True
    moe["router"]["dispatcher"] = {"name": "dropless"}
    losses = router_losses(args.prc, diagonal=args.diagonal)
    # Balance over the batch: over a group it would keep an image from few experts.
    losses["auxiliary_loss"]["scope"] = "batch"
    return complete(
        {
            "description": f"{args.dataset}, E=8, K={args.k}, every block",
            "seed": args.seed,
            "train_steps": args.steps or data.steps,
            "dataset": {
                "train": images(split="train", shuffle_buffer=60_000)
                | (pairs if args.prc else single),
                **evaluated,
                "test_pairs": images(split="test[:20%]") | pairs,
            },
            "model": model,
            "loss": {"name": "softmax_xent"},
            **losses,
            "optimizer": adam(
                "warmup_cosine_decay", peak_value=4e-3, end_value=1e-5, warmup_steps=100
            ),
            "evaluate": {"every_steps": 1_000},
            "save_checkpoint": {"every_steps": 500},
            "report_progress": {"every_steps": 100},
        }
    )
