"""V-MoE-S/32 with PRC, 300 epochs of ImageNet-1K at 224 px (PRC paper, table 1).

    python -m vmoe_prc.main --config=configs/imagenet_prc.py

Arguments: `k=1` one expert a token, `prc=off` the V-MoE baseline, `seed=N`.
Published top-1 on the validation split, after fine-tuning at 384 px: PRC 75.92 (k=1) and
76.27 (k=2), V-MoE 75.23 and 75.84. ImageNet must have been prepared with TFDS.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import router_losses, vmoe_model

IMAGES_PER_STEP = 1024
NUM_CLASSES = 1000
FINISH = f'value_range(-1, 1)|onehot({NUM_CLASSES}, inkey="label", outkey="labels")'
TWO_VIEWS = "decode|two_views(224, (5, 100), (5, 100))|flip_lr|randaug(2, 10)"
ONE_VIEW = "decode_jpeg_and_inception_crop(224, 5, 100)|flip_lr|randaug(2, 10)"
EVALUATION = "decode|resize_small(256)|central_crop(224)"


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, seed=0)
    description = f"ViT-S/32, E=8, K={args.k}, Last 2, 300 Epochs"
    model = vmoe_model(description, image_size=224, num_classes=NUM_CLASSES)
    model["encoder"]["moe"]["dropout_rate"] = 0.2
    if args.prc:
        train, batch_size = (
            f'{TWO_VIEWS}|{FINISH}|keep("image", "labels", "view_from_image")',
            512,
        )
    else:
        train, batch_size = f'{ONE_VIEW}|{FINISH}|keep("image", "labels")', IMAGES_PER_STEP

    def dataset(split, process, batch_size, **options):
        return {
            "name": "imagenet2012",
            "split": split,
            "process": process,
            "batch_size": batch_size,
            **options,
        }

    evaluation = f'{EVALUATION}|{FINISH}|keep("image", "labels")'
    pairs = f'{TWO_VIEWS}|{FINISH}|keep("image", "labels", "view_from_image")'
    return complete(
        {
            "description": description,
            "seed": args.seed,
            "train_epochs": 300,
            "dataset": {
                "train": dataset("train[:99%]", train, batch_size, shuffle_buffer=50_000),
                "val": dataset("train[99%:]", evaluation, IMAGES_PER_STEP),
                "test": dataset("validation", evaluation, IMAGES_PER_STEP),
                "test_pairs": dataset("validation", pairs, IMAGES_PER_STEP // 2),
            },
            "model": model,
            "loss": {"name": "sigmoid_xent"},
            **router_losses(args.prc),
            "optimizer": {
                "name": "adam",
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": [(".*/kernel", 0.1)],
                "gradient_clip": {"global_norm": 1.0},
                "learning_rate": {
                    "schedule": "warmup_linear_decay",
                    "peak_value": 7.5e-4,
                    "end_value": 5e-6,
                    "warmup_steps": 10_000,
                },
            },
            # At evaluation no token is dropped.
            "evaluate": {
                "every_steps": 5_000,
                "model_overrides": {
                    "encoder": {"moe": {"router": {"dispatcher": {"capacity_factor": 4.0}}}}
                },
            },
            "save_checkpoint": {
                "every_steps": 1_000,
                "keep_last": 1,
                "keep_best": 1,
                "best_metric": "val/accuracy",
            },
        }
    )
