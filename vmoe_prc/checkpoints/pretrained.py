"""Files of pre-trained vision transformers of other programs, read under our names.

`open_torch` reads folders and safetensors files of timm and transformers, `from_vit_jax` the
arrays of the `.npz` files in which Google released ViT. What they hold is found out from the
names of the arrays.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from vmoe_prc.checkpoints import safetensors, torch_vit
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.torch_vit import TorchVit
from vmoe_prc.recipes import FINE_TUNE_RULES, IMAGES_PER_GROUP, upcycling_rules

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_INFO = ("config.json", "preprocessor_config.json")
_PICKLES = ("pytorch_model.bin", "model.bin", "model.pth", "model.pt")

# Names of the released ViT files: their attention and MLP are numbered in the block.
_VIT_JAX = (
    (
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_1",
        r"encoderblock_\1/SelfAttention",
    ),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_2", r"encoderblock_\1/LayerNorm_1"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_3", r"encoderblock_\1/Mlp"),
    (r"Transformer/(encoderblock_\d+)", r"\1"),
    (r"Transformer/(encoder_norm|posembed_input)", r"\1"),
)


def is_torch_folder(path: epath.Path) -> bool:
    """Whether a directory holds weights of timm or transformers."""
    return any((path / name).exists() for name in (WEIGHTS, _INDEX, *_PICKLES))


def open_torch(path: epath.Path) -> TorchVit | None:
    """Reads a vision transformer of timm or transformers.

    Args:
      path: A folder with `model.safetensors` (or its parts and their index), or a safetensors
        file; `config.json` and `preprocessor_config.json` of the folder are heeded.

    Returns:
      The model; None if the arrays of a file have other names.

    Raises:
      CheckpointError: If it cannot be read, or has a part that our model does not have.
    """
    folder = path.parent if path.suffix == ".safetensors" else path
    arrays: dict[str, np.ndarray] = {}
    for file in [path] if folder != path else _weights(path):
        arrays |= flax.traverse_util.flatten_dict(safetensors.load(file), sep="/")
    if not torch_vit.is_torch_vit(list(arrays)):
        return None
    info: dict[str, Any] = {}
    for name in _INFO:
        if (folder / name).exists():
            info |= _read_json(folder / name)
    return torch_vit.convert(arrays, info, os.fspath(path))


def from_vit_jax(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the arrays of a released ViT `.npz` our names; those of other files keep theirs."""
    if not any(name.startswith("Transformer/") for name in flat):
        return dict(flat)
    renamed = {}
    for name, x in flat.items():
        rule = next((r for r in _VIT_JAX if re.match(r[0], name)), None)
        new = name if rule is None else "Encoder/" + re.sub(f"^{rule[0]}", rule[1], name)
        renamed[new] = x
    return renamed


def pretrained_model(
    prefix: str | os.PathLike[str],
    *,
    num_classes: int,
    image_size: int,
    num_experts: int = 0,
    num_selected_experts: int = 2,
    num_moe_layers: int = 2,
    noise: float = 0.0,
    cluster_images: int = 0,
) -> dict[str, Any]:
    """Returns `model` and `initialization` that start from a pre-trained dense ViT.

    Args:
      prefix: A folder or safetensors file of timm or transformers.
      num_classes: Classes of the new head.
      image_size: Side of the images in pixels.
      num_experts: Experts of each mixture, copies of the MLP; 0 for a dense model.
      num_selected_experts: K.
      num_moe_layers: Mixtures: every other block, counted from the last.
      noise: Standard deviation of the noise on the copies, as a share of that of the array.
      cluster_images: Images of training from whose tokens experts are made; 0 for copies.

    Raises:
      CheckpointError: If the model cannot be read, or is not one of ours.
    """
    opened = open_torch(epath.Path(prefix))
    if opened is None:
        raise CheckpointError(f"{prefix}: has no arrays of a ViT of timm or transformers")
    model = {"name": "VisionTransformerMoe", **opened.model, "num_classes": num_classes}
    patch = model["patch_size"][0]
    tokens = (image_size // patch) ** 2 + (model["classifier"] == "token")
    depth = model["encoder"]["num_layers"]
    layers = tuple(range(depth - 1, -1, -2))[:num_moe_layers][::-1] if num_experts else ()
    model["encoder"]["moe"] = {
        "num_experts": max(num_experts, 1),
        "layers": layers,
        "group_size": IMAGES_PER_GROUP * tokens,
        "router": {
            "num_selected_experts": num_selected_experts if num_experts else 1,
            "noise_std": 1.0,
            "dispatcher": {"name": "gather", "capacity_factor": 1.5},
        },
    }
    rules = upcycling_rules(layers, num_experts, noise) if num_experts else FINE_TUNE_RULES
    return {
        "model": model,
        "initialization": {
            "prefix": os.fspath(prefix),
            "rules": rules,
            "raise_if_target_unmatched": False,
            "clusters": {"images": cluster_images} if cluster_images and num_experts else None,
        },
    }


def _weights(folder: epath.Path) -> list[epath.Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / _INDEX).exists():
        parts = _read_json(folder / _INDEX).get("weight_map", {})
        return [folder / name for name in sorted(set(parts.values()))]
    pickle = next(name for name in _PICKLES if (folder / name).exists())
    raise CheckpointError(
        f"{folder / pickle}: pickled files can run code and are not read; save the model anew with "
        "save_pretrained(..., safe_serialization=True), or by safetensors.torch.save_file"
    )


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no object")
    return content
