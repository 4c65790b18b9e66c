"""Parts of configurations that several recipes share, in V-MoE's vocabulary."""

import functools
import math
import re
from typing import Any

import ml_collections

from vmoe_prc.config import ConfigError

# Layers, width, MLP width and heads of the model sizes (V-MoE; Ti is our addition).
SIZES = {
    "Ti": (8, 384, 1024, 4),
    "S": (8, 512, 2048, 8),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
}
_DESCRIPTION = re.compile(
    r"ViT-(?P<size>Ti|S|B|L|H)/(?P<patch>\d+), E=(?P<experts>\d+), K=(?P<k>\d+), "
    r"(?P<where>Every|Last) (?P<number>\d+)(, (?P<epochs>\d+) Epochs)?"
)
# Routing groups are the tokens of 8 images, the fewest that a device is meant to hold.
IMAGES_PER_GROUP = 8
# V-MoE evaluates models trained from scratch with room for nearly all tokens.
EVALUATION_CAPACITY = {"encoder": {"moe": {"router": {"dispatcher": {"capacity_factor": 4.0}}}}}
# A new head on other classes, and maybe another resolution.
FINE_TUNE_RULES = (
    ("^params/(head|pre_logits)/", None),
    ("^(.*/pos_embedding)$", r"\1", "vit_zoom"),
    ("^(.*)$", r"\1"),
)
FINE_TUNE_IMAGES_PER_STEP = 1024
# Phones and cameras store photos as they were held, with a note how to turn them; cut-outs and
# icons have any colour where they are transparent.
DECODE_PHOTO = "decode(orient=True, background=255)"


def parse_description(description: str) -> dict[str, Any]:
    """Reads a description such as `ViT-S/32, E=8, K=2, Last 2, 300 Epochs`.

    Returns:
      `size`, `patch`, `experts`, `k`, `layers` (the blocks with experts) and `epochs`
      (None if it is not said).

    Raises:
      ConfigError: If the description is not of this form.
    """
    match = _DESCRIPTION.fullmatch(description)
    if not match:
        raise ConfigError(
            "config.description",
            description,
            "expected 'ViT-S/32, E=8, K=2, Last 2, 300 Epochs'",
        )
    size, number = match["size"], int(match["number"])
    num_layers = SIZES[size][0]
    if match["where"] == "Every":
        layers = tuple(range(number - 1, num_layers, number))
    else:
        layers = tuple(range(1, num_layers, 2))[-number:]
    return {
        "size": size,
        "patch": int(match["patch"]),
        "experts": int(match["experts"]),
        "k": int(match["k"]),
        "layers": layers,
        "epochs": int(match["epochs"]) if match["epochs"] else None,
    }


def vmoe_model(description: str, image_size: int, num_classes: int) -> dict[str, Any]:
    """Returns the `model` of the V-MoE paper that a description names.

    Args:
      description: See `parse_description`.
      image_size: Side of the images in pixels, which sets the size of a routing group.
      num_classes: Number of classes; the head's bias starts at -ln of it.
    """
    parts = parse_description(description)
    num_layers, hidden_size, mlp_dim, num_heads = SIZES[parts["size"]]
    num_tokens = (image_size // parts["patch"]) ** 2 + 1
    return {
        "name": "VisionTransformerMoe",
        "num_classes": num_classes,
        "patch_size": (parts["patch"], parts["patch"]),
        "hidden_size": hidden_size,
        "classifier": "token",
        "representation_size": hidden_size,
        "head_bias_init": -math.log(num_classes),
        "encoder": {
            "num_layers": num_layers,
            "mlp_dim": mlp_dim,
            "num_heads": num_heads,
            "moe": {
                "num_experts": parts["experts"],
                "layers": parts["layers"],
                "group_size": IMAGES_PER_GROUP * num_tokens,
                "router": {
                    "num_selected_experts": parts["k"],
                    "noise_std": 1.0,
                    # Tokens travel as bfloat16 in all configurations of V-MoE and PRC.
                    "dispatcher": {"name": "gather", "capacity_factor": 1.05, "bfloat16": True},
                },
            },
        },
    }


def small_model(
    num_classes: int, image_size: int, patch_size: int, *, experts: int, k: int, layers: tuple
) -> dict[str, Any]:
    """Returns a `model` of width 64 for small images, trained in minutes without accelerator.

    Args:
      num_classes: Number of classes; the head's bias starts at -ln of it.
      image_size: Side of the images in pixels.
      patch_size: Side of the patches in pixels.
      experts: Number of experts.
      k: Number of selected experts.
      layers: Blocks with experts, the last of which is the last block.
    """
    num_tokens = (image_size // patch_size) ** 2 + 1
    return {
        "num_classes": num_classes,
        "patch_size": (patch_size, patch_size),
        "hidden_size": 64,
        "head_bias_init": -math.log(num_classes),
        "encoder": {
            "num_layers": layers[-1] + 1,
            "mlp_dim": 128,
            "num_heads": 4,
            "moe": {
                "num_experts": experts,
                "layers": layers,
                "group_size": IMAGES_PER_GROUP * num_tokens,
                "router": {
                    "num_selected_experts": k,
                    "dispatcher": {"name": "gather", "capacity_factor": 1.5},
                },
            },
        },
    }


def adam(schedule: str, peak_value: float, end_value: float, warmup_steps: int) -> dict[str, Any]:
    """Returns the `optimizer` of training from scratch: Adam, decayed kernels, clipped."""
    return {
        "name": "adam",
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": [(".*/kernel", 0.1)],
        "gradient_clip": {"global_norm": 1.0},
        "learning_rate": {
            "schedule": schedule,
            "peak_value": peak_value,
            "end_value": end_value,
            "warmup_steps": warmup_steps,
        },
    }


def router_losses(
    prc: bool, pair_class_tokens: bool = True, diagonal: str = "matrix"
) -> dict[str, Any]:
    """Returns the losses on the routers: only PRC, or V-MoE's balance losses.

    Args:
      prc: Whether to use PRC.
      pair_class_tokens: Whether the class tokens of two views are a pair.
      diagonal: 'matrix', the formula of the paper, or 'per_position', the formula of PRC's released
        program.
    """
    if prc:
        return {
            "auxiliary_loss": {"importance_loss_weight": 0.0, "load_loss_weight": 0.0},
            "consistency": {
                "name": "prc",
                "diagonal_weight": 5e-3,
                "off_diagonal_weight": 5e-2,
                "diagonal": diagonal,
                "pair_class_tokens": pair_class_tokens,
            },
        }
    return {
        "auxiliary_loss": {"importance_loss_weight": 5e-3, "load_loss_weight": 5e-3},
        "consistency": None,
    }


def is_vmoes(arguments: ml_collections.ConfigDict) -> bool:
    """Whether the arguments `prc` and `baseline` ask for V-MoE's own recipe.

    Raises:
      ConfigError: If the baseline is neither 'matched' nor 'vmoe', or 'vmoe' with PRC.
    """
    field, baseline = "config argument 'baseline'", arguments.baseline
    if baseline not in ("matched", "vmoe"):
        raise ConfigError(field, baseline, "expected one of matched, vmoe")
    if baseline == "vmoe" and arguments.prc:
        raise ConfigError(field, baseline, "needs prc=off")
    return baseline == "vmoe"


def finish(num_classes: int, two_views: bool = False, label: str = "label") -> str:
    """Returns the end of a preprocessing string: values in [-1, 1] and one-hot labels.

    Args:
      num_classes: Number of classes.
      two_views: Whether to keep the maps of two views.
      label: Field of the class, or of several.
    """
    keep = '"image", "labels"' + (', "view_from_image"' if two_views else "")
    labels = f'onehot({num_classes}, inkey="{label}", outkey="labels")'
    return f"value_range(-1, 1)|{labels}|keep({keep})"


def fewshot(
    datasets: dict[str, tuple[str, str, str, str]], image_size: int, batch_size: int
) -> dict[str, Any]:
    """Returns a `fewshot` section with V-MoE's numbers of shots and strengths.

    Args:
      datasets: (TFDS name, training, validation and test split) by a name for the metrics.
      image_size: Side of the images in pixels.
      batch_size: Images evaluated at once.
    """
    process = f'decode|resize({image_size})|value_range(-1, 1)|keep("image", "label")'
    return {"datasets": datasets, "process": process, "batch_size": batch_size}


def upcycling_rules(
    layers: tuple[int, ...], num_experts: int, noise: float = 0.0
) -> tuple[tuple[Any, ...], ...]:
    """Returns rules that make each expert a copy of a dense model's MLP.

    Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055). The routers are new, so
    `raise_if_target_unmatched` must be False.

    Args:
      layers: Blocks that get experts.
      num_experts: Number of experts.
      noise: Standard deviation of the noise that makes the copies differ, as a share of that
        of the array; 0 for equal copies.
    """
    blocks = "|".join(map(str, layers))
    copies = ("noisy_copies", num_experts, noise) if noise else ("expand_tile", 0, num_experts)
    return (
        (rf"^(.*/encoderblock_({blocks}))/Mlp/(.*)$", r"\1/Moe/Mlp/\3", *copies),
        *FINE_TUNE_RULES,
    )


def teacher_guided(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Changes a recipe so that a frozen dense model teaches the routers (arXiv 2604.21330).

    The dense model is the recipe without experts: `--config.model.encoder.moe.layers=()`.
    Balance and consistency losses are off, as in TGR-MoE.

    Args:
      config: A recipe.
      prefix: Work directory or checkpoint of the dense model.
    """
    weight = 5.0 / len(config["model"]["encoder"]["moe"]["layers"])
    return {
        **config,
        "model": {"name": "TeacherGuidedMoe", **config["model"]},
        "initialization": {
            "prefix": prefix,
            "rules": (("^params/head/", None), ("^params/(.*)$", r"params/Teacher/\1")),
            "raise_if_target_unmatched": False,
        },
        "optimizer": {**config["optimizer"], "frozen_pattern": "^Teacher/"},
        "auxiliary_loss": {
            "teacher_loss_weight": weight,
            "teacher_importance_loss_weight": 5e-3,
            "teacher_entropy_loss_weight": 5e-3,
            "teacher_until": 0.5,
        },
        "consistency": None,
    }


def fine_tune_optimizer(
    peak_value: float, warmup_steps: int, end_value: float = 1e-5
) -> dict[str, Any]:
    """Returns the optimiser of V-MoE's fine-tunings, momentum with a cosine of the rate.

    Args:
      peak_value: Learning rate after the warm-up.
      warmup_steps: Steps of the warm-up.
      end_value: Learning rate at the end.
    """
    return {
        "name": "sgd",
        "momentum": 0.9,
        "gradient_clip": {"global_norm": 10.0},
        "learning_rate": {
            "schedule": "warmup_cosine_decay",
            "peak_value": peak_value,
            "end_value": end_value,
            "warmup_steps": warmup_steps,
        },
    }


def fine_tune(
    arguments: ml_collections.ConfigDict,
    *,
    dataset: str,
    splits: dict[str, str],
    num_classes: int,
    image_size: int,
    peak_value: float = 3e-3,
    end_value: float = 1e-5,
    steps: int = 5_000,
    pair_class_tokens: bool = False,
) -> dict[str, Any]:
    """Returns the paper's recipe for fine-tuning V-MoE-S/32: `steps` steps of 1,024 views.

    Capacity is 1.5 in training and evaluation, as in the released programs of V-MoE and PRC.

    The published runs start from the pre-trained model of `configs/imagenet_prc.py`: give
    its work directory as `--config.initialization.prefix`.

    Args:
      arguments: `k`, the number of selected experts; `prc`, whether to train on pairs of
        views with PRC, or on one view without; `diagonal`, see `router_losses`; `seed`.
      dataset: Name of the data set.
      splits: Its splits `train`, `val` and `test`; a split that is missing is left out.
      num_classes: Number of classes.
      image_size: Side of the images in pixels.
      peak_value: Learning rate after the warm-up.
      end_value: Learning rate at the end.
      steps: Steps of the training.
      pair_class_tokens: Whether the class tokens of two views are paired.
    """
    description = f"ViT-S/32, E=8, K={arguments.k}, Last 2"
    model = vmoe_model(description, image_size, num_classes)
    model["representation_size"] = None
    model["encoder"]["moe"]["router"]["dispatcher"]["capacity_factor"] = 1.5
    crop = f"inception_crop({image_size}, 5, 100, truncate=True)"
    crops = f"two_views({image_size}, (5, 70), (60, 100), truncate=True)"
    one_view = f"decode|{crop}|flip_lr|{finish(num_classes)}"
    two_views = f"decode|{crops}|flip_lr|{finish(num_classes, True)}"
    whole = f"decode|resize({image_size}, truncate=True)|{finish(num_classes)}"
    split = functools.partial(dict, name=dataset, batch_size=FINE_TUNE_IMAGES_PER_STEP)
    pairs = {"process": two_views, "batch_size": FINE_TUNE_IMAGES_PER_STEP // 2}
    train = pairs if arguments.prc else {"process": one_view}
    return {
        "description": description,
        "seed": arguments.seed,
        "train_steps": steps,
        "dataset": {
            "train": split(split=splits["train"], shuffle_buffer=50_000) | train,
            **{s: split(split=splits[s], process=whole) for s in ("val", "test") if s in splits},
            "test_pairs": split(split=splits["test"]) | pairs,
        },
        "model": model,
        "initialization": {"rules": FINE_TUNE_RULES, "raise_if_target_unmatched": False},
        "loss": {"name": "softmax_xent"},
        **router_losses(arguments.prc, pair_class_tokens, arguments.diagonal),
        "optimizer": fine_tune_optimizer(peak_value, 500, end_value),
        "evaluate": {"every_steps": 500},
        "save_checkpoint": {"every_steps": 500},
    }
