"""Models of the Soft MoE paper (arXiv 2308.00951) and its two baselines, by their names."""

import math
import re
from typing import Any

from vmoe_prc.config import ConfigError

# Width, blocks, MLP width and heads; V-MoE's models of the same letters differ.
SIZES = {
    "ti": (192, 12, 768, 3),
    "s": (384, 12, 1536, 6),
    "b": (768, 12, 3072, 12),
    "l": (1024, 24, 4096, 16),
    "h": (1280, 32, 5120, 16),
}
# Last blocks with experts.
LAST_BLOCKS = {"ti": 6, "s": 6, "b": 6, "l": 12, "h": 16}
ROUTERS = ("soft", "ec", "vit")
_NAME = re.compile(r"(?P<router>soft|ec|vit)-(?P<size>ti|s|b|l|h)(?P<patch>\d+)")


def soft_moe_model(
    name: str, image_size: int, num_classes: int, num_experts: int | None = None
) -> dict[str, Any]:
    """Returns the `model` of a name such as 'soft-s16', 'ec-b16' or 'vit-h14'.

    Args:
      name: 'soft' (Soft MoE, a slot an expert), 'ec' (Expert Choice) or 'vit' (dense); the size,
        of 'ti', 's', 'b', 'l' and 'h'; and the side of a patch in pixels.
      image_size: Side of the images in pixels.
      num_classes: Number of classes; the head's bias starts at -ln of it.
      num_experts: Experts of a block; None for the paper's number: 128, or 256 with patches of 14.

    Raises:
      ConfigError: If the name is not of this form.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ConfigError("config argument 'model'", name, "expected 'soft-s16', 'ec-b16', …")
    size, patch = match["size"], int(match["patch"])
    hidden_size, num_layers, mlp_dim, num_heads = SIZES[size]
    moe: dict[str, Any] = {"layers": ()}
    if match["router"] != "vit":
        moe = {
            "layers": tuple(range(num_layers))[-LAST_BLOCKS[size] :],
            "num_experts": num_experts or (256 if patch == 14 else 128),
            # Routing is within an image.
            "group_size": (image_size // patch) ** 2,
            "router": _ROUTER_OPTIONS[match["router"]],
        }
    return {
        "name": "VisionTransformerMoe",
        "num_classes": num_classes,
        "patch_size": (patch, patch),
        "hidden_size": hidden_size,
        "classifier": "gap",
        "head_bias_init": -math.log(num_classes),
        "encoder": {
            "num_layers": num_layers,
            "mlp_dim": mlp_dim,
            "num_heads": num_heads,
            "attention_qk_norm": True,
            "moe": moe,
        },
    }


_ROUTER_OPTIONS = {
    "soft": {"name": "SoftRouter", "num_slots": 1, "dispatcher": {"bfloat16": True}},
    "ec": {
        "name": "NoisyTopItemsPerExpertRouter",
        "noise_std": 1.0,
        "dispatcher": {
            "name": "gather",
            "bfloat16": True,
            "capacity_factor": 1.0,
            # As many slots as Soft MoE has.
            "capacity_ceil_or_round": "round",
            "capacity_multiple_of": 1,
        },
    },
}


def soft_moe_optimizer(name: str) -> dict[str, Any]:
    """Returns the `optimizer` of the paper's long runs, which a cooldown of 50,000 steps ends."""
    decay = [("head/kernel", 3.0), (".*/kernel", 0.03)]
    if name.startswith("soft"):  # Its router has no kernel.
        decay.append((".*/Moe/Router/scale", 0.03))
    return {
        "name": "adam",
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": decay,
        "gradient_clip": {"global_norm": 1.0},
        "learning_rate": {
            "schedule": "big_vision_rsqrt",
            "peak_value": 1e-3,
            "warmup_steps": 10_000,
            "cooldown_steps": 50_000,
            "timescale": 10_000,
        },
    }
