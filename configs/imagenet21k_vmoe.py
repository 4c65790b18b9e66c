"""V-MoE-B/16 with experts in every second block, 300 epochs of ImageNet-21k (arXiv 2106.05974).

    python -m vmoe_prc.data.prepare imagenet21k --from=DIRECTORY_OF_FALL11_WHOLE_TAR
    python -m vmoe_prc.main --config=configs/imagenet21k_vmoe.py

Arguments: `k=1` one expert per token, `prc=on` pairs of views with PRC, `seed=N`; for the larger
models of the paper `backbone=L/16` or `H/14`, `experts=32`, and `last=5` for experts in the last
five of the blocks with an odd number.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import adam, finish, router_losses, vmoe_model

MODEL = {"backbone": "B/16", "experts": 8, "last": 0}
IMAGES_PER_STEP = 4096
NUM_CLASSES = 21_843
AUGMENT = "flip_lr|randaug(2, 20)"
ONE_VIEW = f"decode_jpeg_and_inception_crop(224, truncate=True)|{AUGMENT}|{finish(NUM_CLASSES)}"
CROPS = "two_views(224, (5, 100), (5, 100), truncate=True)"
TWO_VIEWS = f"decode|{CROPS}|{AUGMENT}|{finish(NUM_CLASSES, True)}"
CENTRE = f"decode|resize_small(256)|central_crop(224)|{finish(NUM_CLASSES)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=False, diagonal="matrix", seed=0, **MODEL)
    where = f"Last {args.last}" if args.last else "Every 2"
    description = f"ViT-{args.backbone}, E={args.experts}, K={args.k}, {where}, 300 Epochs"
    model = vmoe_model(description, image_size=224, num_classes=NUM_CLASSES)
    model |= {"representation_size": None, "head_bias_init": -10.0}
    process, views = (TWO_VIEWS, 2) if args.prc else (ONE_VIEW, 1)
    imagenet = functools.partial(dict, name="imagenet21k")
    return complete(
        {
            "description": description,
            "seed": args.seed,
            "train_epochs": 300,
            "dataset": {
                "train": imagenet(
                    split="full[102400:]",
                    process=process,
                    batch_size=IMAGES_PER_STEP // views,
                    shuffle_buffer=250_000,
                ),
                "val": imagenet(split="full[:102400]", process=CENTRE, batch_size=IMAGES_PER_STEP),
            },
            "model": model,
            "loss": {"name": "sigmoid_xent"},
            **router_losses(args.prc, diagonal=args.diagonal),
            "mixup": None if args.prc else {"concentration": 0.5, "size": 2},
            "optimizer": adam(
                "warmup_linear_decay", peak_value=8e-4, end_value=1e-5, warmup_steps=10_000
            ),
        }
    )
