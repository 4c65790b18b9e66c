"""Pre-trained vision transformers of timm and transformers, and models that start from them.

The names of its arrays tell what a file holds. `npz` reads the files of Google's ViT.
"""

import json
import os
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from vmoe_prc.checkpoints import npz, safetensors, torch_vit
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.torch_vit import TorchVit
from vmoe_prc.recipes import FINE_TUNE_RULES, IMAGES_PER_GROUP, upcycling_rules

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_INFO = ("config.json", "preprocessor_config.json")
_PICKLES = ("pytorch_model.bin", "model.bin", "model.pth", "model.pt")


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
      prefix: A folder or safetensors file of timm or transformers, or an `.npz` file of ViT.
      num_classes: Classes of the new head.
      image_size: Side of the images in pixels.
      num_experts: Experts of each mixture, copies of the MLP; 0 for a dense model.
      num_selected_experts: K.
      num_moe_layers: Mixtures: every other block, counted from the last.
      noise: Standard deviation of the noise on the copies, divided by the array's.
      cluster_images: Images of training from whose tokens experts are made; 0 for copies.

    Raises:
      CheckpointError: If the model cannot be read, or is not one of ours.
    """
    model = {"name": "VisionTransformerMoe", **_fields(prefix), "num_classes": num_classes}
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


def _fields(prefix: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of `config.model` that a pre-trained model has, without experts."""
    path = epath.Path(prefix)
    if path.suffix == ".npz":
        params = {f"params/{name}": x for name, x in npz.read_npz(path).items()}
        if "params/Encoder/encoderblock_0/Mlp/Dense_0/kernel" in params:
            return npz.model_fields(params)
    elif (opened := open_torch(path)) is not None:
        return opened.model
    raise CheckpointError(f"{prefix}: has no arrays of a ViT of timm, transformers or Google")


def _weights(folder: epath.Path) -> list[epath.Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / _INDEX).exists():
        parts = _read_json(folder / _INDEX).get("weight_map", {})
        return [folder / name for name in sorted(set(parts.values()))]
    pickle = next(name for name in _PICKLES if (folder / name).exists())
    raise CheckpointError(
        f"{folder / pickle}: pickled files can run code and are not read; save the model again by "
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
