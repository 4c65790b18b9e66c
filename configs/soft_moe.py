"""Soft MoE (arXiv 2308.00951), and the Expert Choice and dense baselines of its paper.

    python -m vmoe_prc.main --config=configs/soft_moe.py:model=soft-s16

Arguments: `model=NAME`, where NAME is `soft`, `ec` or `vit`, a size of ti, s, b, l and h, and the
side of a patch, such as soft-s14, ec-b16 or vit-h14; `seed=N`. Models and optimiser are from
`pretrain_jft4b` of google-research/vmoe, for the long runs of the paper: 4 million steps, 2 million
for h. JFT-4B is not public; here they train on ImageNet-21k, for which the paper has no figure.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import finish
from vmoe_prc.recipes.soft_moe import soft_moe_model, soft_moe_optimizer

IMAGES_PER_STEP = 4096
NUM_CLASSES = 21_843
TRAIN = f"decode_jpeg_and_inception_crop(224, truncate=True)|flip_lr|{finish(NUM_CLASSES)}"
CENTRE = f"decode|resize_small(256)|central_crop(224)|{finish(NUM_CLASSES)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, model="soft-s16", seed=0)
    imagenet = functools.partial(dict, name="imagenet21k", batch_size=IMAGES_PER_STEP)
    return complete(
        {
            "description": args.model,
            "seed": args.seed,
            "train_steps": 2_000_000 if "-h" in args.model else 4_000_000,
            "dataset": {
                "train": imagenet(split="full[102400:]", process=TRAIN, shuffle_buffer=250_000),
                "val": imagenet(split="full[:102400]", process=CENTRE),
            },
            "model": soft_moe_model(args.model, 224, NUM_CLASSES),
            "loss": {"name": "sigmoid_xent"},
            "optimizer": soft_moe_optimizer(args.model),
            "evaluate": {"every_steps": 1_000},
            # Any of these can be cooled down alone.
            "save_checkpoint": {
                "every_steps": 1_000,
                "keep_last": 2,
                "keep_steps_multiple_of": 50_000,
            },
        }
    )
