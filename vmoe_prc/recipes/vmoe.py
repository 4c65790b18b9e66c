"""The recipes of google-research/vmoe: training, fine-tuning and ensembles (E³)."""

import functools
from collections.abc import Mapping
from typing import Any

from vmoe_prc.recipes import (
    EVALUATION_CAPACITY,
    FINE_TUNE_IMAGES_PER_STEP,
    FINE_TUNE_RULES,
    adam,
    fine_tune_optimizer,
    finish,
    router_losses,
    vmoe_model,
)

IMAGES_PER_STEP = 8192
NUM_CLASSES = 1000
# Test sets in addition to ImageNet's own: data set, split and field of the labels.
OTHER_TESTS = {
    "imagenet_v2": ("imagenet_v2", "test", "label"),
    "imagenet_real": ("imagenet2012_real", "validation", "real_label"),
    "imagenet_a": ("imagenet_a", "test", "label"),
}


def imagenet_tests(process: str, batch_size: int, others: bool) -> dict[str, dict[str, Any]]:
    """Returns the splits `val` and `test` of ImageNet, and test sets of others with its classes.

    The 3,163 of 50,000 images of ImageNet-ReaL without a label count as wrong, as in V-MoE's
    program and in the figures of its headers: 74.4% next to 73.1% on ImageNet are 79.4% of the
    images with labels. `unlabelled='left_out'` is the definition of ImageNet-ReaL.

    Args:
      process: Ops that make an image of the model's size, without the ops of `finish`.
      batch_size: Images evaluated at once.
      others: Whether to test on ImageNet-V2, ImageNet-ReaL and ImageNet-A, too.
    """
    sets = {
        "val": ("imagenet2012", "train[99%:]", "label"),
        "test": ("imagenet2012", "validation", "label"),
        **(OTHER_TESTS if others else {}),
    }
    return {
        key: {
            "name": name,
            "split": split,
            "process": f"{process}|{finish(NUM_CLASSES, label=label)}",
            "batch_size": batch_size,
            "unlabelled": "wrong" if key == "imagenet_real" else "left_out",
        }
        for key, (name, split, label) in sets.items()
    }


def imagenet_from_scratch(k: int, others: bool, seed: int) -> dict[str, Any]:
    """Returns `vmoe_s32_last2_ilsvrc2012_randaug_light1`: V-MoE-S/32, 300 epochs at 224 px.

    Args:
      k: Number of selected experts.
      others: See `imagenet_tests`.
      seed: Seed of the run.
    """
    description = f"ViT-S/32, E=8, K={k}, Last 2, 300 Epochs"
    model = vmoe_model(description, image_size=224, num_classes=NUM_CLASSES)
    model["encoder"]["moe"]["dropout_rate"] = 0.2
    crop = "decode_jpeg_and_inception_crop(224, truncate=True)"
    train = f"{crop}|flip_lr|randaug(2, 10)|{finish(NUM_CLASSES)}"
    centre = "decode|resize_small(256)|central_crop(224)"
    return {
        "description": description,
        "seed": seed,
        "train_epochs": 300,
        "dataset": {
            "train": {
                "name": "imagenet2012",
                "split": "train[:99%]",
                "process": train,
                "batch_size": IMAGES_PER_STEP,
                "shuffle_buffer": 50_000,
            },
            **imagenet_tests(centre, IMAGES_PER_STEP, others),
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


def imagenet_fine_tuning(backbone: str, k: int, others: bool, seed: int) -> dict[str, Any]:
    """Returns V-MoE's fine-tuning on ImageNet-1K: 10,000 steps of 1,024 images at 384 px.

    Args:
      backbone: The model to fine-tune, as in a description: 'ViT-S/32, E=8, K=2, Last 2'.
      k: Number of selected experts.
      others: See `imagenet_tests`.
      seed: Seed of the run.
    """
    model = vmoe_model(f"{backbone}, 300 Epochs", image_size=384, num_classes=NUM_CLASSES)
    crop = "decode_jpeg_and_inception_crop(384, truncate=True)"
    return {
        "description": backbone,
        "seed": seed,
        "train_steps": 10_000,
        "dataset": {
            "train": {
                "name": "imagenet2012",
                "split": "train[:99%]",
                "process": f"{crop}|flip_lr|{finish(NUM_CLASSES)}",
                "batch_size": FINE_TUNE_IMAGES_PER_STEP,
                "shuffle_buffer": 50_000,
            },
            **imagenet_tests(
                "decode|resize(384, truncate=True)", FINE_TUNE_IMAGES_PER_STEP, others
            ),
        },
        **fine_tuned(model, k, peak_value=3e-3, warmup_steps=500, every_steps=1_000),
    }


def cifar_fine_tuning(
    model: Mapping[str, Any], dataset: str, num_classes: int, steps: int, seed: int, **options: Any
) -> dict[str, Any]:
    """Returns V-MoE's fine-tuning on CIFAR: steps of 1,024 images at 128 px.

    Args:
      model: The model, for images of 128 px.
      dataset: 'cifar10' or 'cifar100'.
      num_classes: Its classes.
      steps: Steps of the training.
      seed: Seed of the run.
      **options: Arguments of `fine_tuned`.
    """
    split = functools.partial(dict, name=dataset, batch_size=FINE_TUNE_IMAGES_PER_STEP)
    whole = f"decode|resize(128, truncate=True)|{finish(num_classes)}"
    train = f"decode|inception_crop(128, truncate=True)|flip_lr|{finish(num_classes)}"
    return {
        "seed": seed,
        "train_steps": steps,
        "dataset": {
            "train": split(split="train[:98%]", process=train, shuffle_buffer=50_000),
            "val": split(split="train[98%:]", process=whole),
            "test": split(split="test", process=whole),
        },
        **fine_tuned(model, every_steps=100, **options),
    }


def fine_tuned(
    model: Mapping[str, Any],
    k: int,
    *,
    peak_value: float,
    warmup_steps: int,
    every_steps: int,
    representation_size: int | None = None,
) -> dict[str, Any]:
    """Returns the model, start, losses and optimiser that V-MoE's fine-tunings share.

    Args:
      model: The pre-trained model, with the head of the new classes.
      k: Number of selected experts.
      peak_value: Learning rate after the warm-up.
      warmup_steps: Steps of the warm-up.
      every_steps: Steps between evaluations.
      representation_size: Width of the layer before the head.
    """
    encoder, moe = model["encoder"], model["encoder"]["moe"]
    dispatcher = {**moe["router"]["dispatcher"], "capacity_factor": 1.5}
    router = {**moe["router"], "num_selected_experts": k, "dispatcher": dispatcher}
    return {
        "model": {
            **model,
            "representation_size": representation_size,
            "encoder": {**encoder, "moe": {**moe, "router": router}},
        },
        "initialization": {"rules": FINE_TUNE_RULES, "raise_if_target_unmatched": False},
        "loss": {"name": "softmax_xent"},
        **router_losses(prc=False),
        "optimizer": fine_tune_optimizer(peak_value, warmup_steps),
        "evaluate": {"every_steps": every_steps},
        "save_checkpoint": {"every_steps": 1_000},
    }


def ensemble_on_cifar100(seed: int) -> dict[str, Any]:
    """Returns `eee_s32_last2_ilsvrc2012_ft_cifar100`: two members of four experts each."""
    description = "ViT-S/32, E=8, K=1, Last 2, 300 Epochs"
    model = vmoe_model(description, image_size=128, num_classes=100)
    members, tokens = 2, (128 // 32) ** 2 + 1
    model["head_bias_init"] = -10.0
    # The images of one of 8 devices.
    group_size = FINE_TUNE_IMAGES_PER_STEP // 8 * tokens * members
    model["encoder"]["moe"] |= {"ensemble_size": members, "group_size": group_size}
    config = cifar_fine_tuning(
        model,
        "cifar100",
        100,
        2_000,
        seed,
        k=1,
        peak_value=5e-3,
        warmup_steps=200,
        representation_size=model["hidden_size"],
    )
    # Its router starts from the router of a model without members, whose experts it splits.
    router = ("^(.*/Moe/Router/dense/.*)$", r"\1", "reshape")
    config["initialization"]["rules"] = (
        ("^params/head/", None),
        *(rule for rule in FINE_TUNE_RULES[1:-1]),
        router,
        FINE_TUNE_RULES[-1],
    )
    config["loss"] = {"name": "ensemble_softmax_xent", "ensemble_size": members}
    return {"description": "EEE-S/32, K=1, M=2, Last 2", **config}
