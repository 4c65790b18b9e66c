"""V-MoE-S/32 by V-MoE's own recipe, 300 epochs of ImageNet-1K at 224 px.

    python -m vmoe_prc.main --config=configs/imagenet_vmoe.py

Arguments: `k=1` one expert per token, `seed=N`. It is `vmoe_s32_last2_ilsvrc2012_randaug_light1` of
google-research/vmoe, whose header gives a top-1 of 73.1 on ImageNet-1K (mean of 3 seeds) and of
75.9 after fine-tuning at 384 px (`imagenet_finetune_prc.py:prc=off`). The baseline that PRC is
compared with is `imagenet_prc.py:prc=off`: batches of 1,024, another learning rate, no mixup.
"""

import functools

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import EVALUATION_CAPACITY, adam, finish, router_losses, vmoe_model

IMAGES_PER_STEP = 8192
NUM_CLASSES = 1000
TRAIN = f"decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 10)|{finish(NUM_CLASSES)}"
CENTRE = f"decode|resize_small(256)|central_crop(224)|{finish(NUM_CLASSES)}"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, seed=0)
    description = f"ViT-S/32, E=8, K={args.k}, Last 2, 300 Epochs"
    model = vmoe_model(description, image_size=224, num_classes=NUM_CLASSES)
    model["encoder"]["moe"]["dropout_rate"] = 0.2
    imagenet = functools.partial(dict, name="imagenet2012", batch_size=IMAGES_PER_STEP)
    return complete(
        {
            "description": description,
            "seed": args.seed,
            "train_epochs": 300,
            "dataset": {
                "train": imagenet(split="train[:99%]", process=TRAIN, shuffle_buffer=50_000),
                "val": imagenet(split="train[99%:]", process=CENTRE),
                "test": imagenet(split="validation", process=CENTRE),
            },
            "model": model,
            "loss": {"name": "sigmoid_xent"},
            **router_losses(prc=False),
            "mixup": {"concentration": 0.2, "size": 2, "granularity": "device"},
            "optimizer": adam(
                "warmup_linear_decay", peak_value=3e-3, end_value=1e-5, warmup_steps=10_000
            ),
            "evaluate": {"every_steps": 1_000, "model_overrides": EVALUATION_CAPACITY},
            "save_checkpoint": {"every_steps": 1_000},
        }
    )
