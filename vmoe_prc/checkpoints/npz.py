"""Reads `.npz` files: Google's released ViTs, and arrays by our names.

The released files come from google-research/vision_transformer, where layers have numbers within a
block (counting all layers in old files, layers of one kind in new ones), and from big_vision. Both
compute as our defaults do: pixels in [-1, 1], the approximate GELU.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vmoe_prc.checkpoints.manager import CheckpointError

T = TypeVar("T")

_RULES = (
    (r"^Transformer/(encoderblock_\d+)/MultiHeadDotProductAttention_[01]/", r"\1/SelfAttention/"),
    (r"^Transformer/(encoderblock_\d+)/LayerNorm_[12]/", r"\1/LayerNorm_1/"),
    (r"^Transformer/(encoderblock_\d+)/MlpBlock_[03]/", r"\1/Mlp/"),
    (r"^Transformer/", ""),
    (r"^pos_embedding$", "posembed_input/pos_embedding"),
)
_POOLING = (
    ("^MAPHead_0/(MultiHeadDotProductAttention|LayerNorm)_0/", r"MapHead/\1/"),
    ("^MAPHead_0/MlpBlock_0/", "MapHead/Mlp/"),
    ("^MAPHead_0/", "MapHead/"),
)
# Models that have no counterpart here, by a name of theirs.
_REFUSED = (
    (r"^(conv_root|block\d+)/", "a hybrid of a ResNet and a transformer, which is not supported"),
    (r"^MixerBlock_\d+/", "an MLP-Mixer, which is not supported"),
    (r"^(img|txt)/", "two towers, of images and of text, which are not supported"),
    (
        r"^Transformer/encoderblock/",
        "blocks stacked in one array, which are not supported: save one array per block",
    ),
)


def read_npz(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file; arrays of a released ViT get our names.

    Raises:
      CheckpointError: If it cannot be read, or is of a model that has no counterpart here.
    """
    flat: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for name in arrays.files:
                renamed = re.sub("^opt/target/", "", name)
                if renamed in flat:
                    raise ValueError(f"two arrays are named {renamed!r}")
                flat[renamed] = _with_bfloat16(arrays[name])
    # As zlib, zipfile and NumPy raise them for damaged archives.
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, SyntaxError) as error:
        raise _unreadable(path, error) from error
    if not flat:
        raise CheckpointError(f"{path}: has no arrays")
    return with_our_names(flat, path)


def with_our_names(flat: Mapping[str, T], source: object) -> dict[str, T]:
    """Gives the arrays of a released ViT our names, without the level `params`.

    Args:
      flat: Arrays by their names in the file. Those of other files keep their names.
      source: The file, for errors.

    Raises:
      CheckpointError: If they are of a model that has no counterpart here.
    """
    params = {n.removeprefix("params/"): x for n, x in flat.items() if n.startswith("params/")}
    found = params or dict(flat)
    for pattern, reason in _REFUSED:
        if any(re.search(pattern, name) for name in found):
            raise CheckpointError(f"{source}: holds {reason}")
    if not is_vit(found):
        return dict(flat)
    return {_renamed(name): x for name, x in found.items()}


def is_vit(names: Iterable[str]) -> bool:
    """Whether these names, without the level `params`, are of a released ViT."""
    return any(name.startswith("Transformer/") for name in names)


def model_fields(params: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns the fields of `config.model` that a ViT has, without experts and head.

    Args:
      params: Its arrays by our names, such as `params/embedding/kernel`.
    """
    kernel = params["params/embedding/kernel"]
    block = "params/Encoder/encoderblock_0"
    numbers = (re.match(r"params/Encoder/encoderblock_(\d+)/", name) for name in params)
    pooled = any(name.startswith("params/MapHead/") for name in params)
    return {
        "patch_size": tuple(kernel.shape[:2]),
        "hidden_size": kernel.shape[-1],
        "classifier": "map" if pooled else "token" if "params/cls" in params else "gap",
        "encoder": {
            "num_layers": 1 + max(int(match[1]) for match in numbers if match),
            "mlp_dim": params[f"{block}/Mlp/Dense_0/kernel"].shape[-1],
            "num_heads": params[f"{block}/SelfAttention/query/kernel"].shape[1],
        },
    }


def _renamed(name: str) -> str:
    for pattern, replacement in _RULES:
        if re.search(pattern, name):
            return "Encoder/" + re.sub(pattern, replacement, name)
    for pattern, replacement in _POOLING:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _with_bfloat16(x: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16, and hold it as two bytes without a type."""
    return x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x


def _unreadable(path: epath.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read: {' '.join(str(error).split())}")
