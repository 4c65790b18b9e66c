"""Parts of configurations that several recipes share, in V-MoE's vocabulary."""

import math
import re
from typing import Any

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
                    "dispatcher": {"name": "gather", "capacity_factor": 1.05},
                },
            },
        },
    }


def router_losses(prc: bool, pair_class_tokens: bool = True) -> dict[str, Any]:
    """Returns the losses on the routers: PRC alone, or V-MoE's balance losses."""
    if prc:
        return {
            "auxiliary_loss": {"importance_loss_weight": 0.0, "load_loss_weight": 0.0},
            "consistency": {
                "name": "prc",
                "diagonal_weight": 5e-3,
                "off_diagonal_weight": 5e-2,
                "pair_class_tokens": pair_class_tokens,
            },
        }
    return {
        "auxiliary_loss": {"importance_loss_weight": 5e-3, "load_loss_weight": 5e-3},
        "consistency": None,
    }
