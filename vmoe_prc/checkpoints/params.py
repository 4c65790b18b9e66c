"""Reads and writes the parameters of a model in all supported formats."""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from vmoe_prc.checkpoints import safetensors, vmoe_format
from vmoe_prc.checkpoints.manager import CheckpointError, restore_part
from vmoe_prc.checkpoints.metadata import as_safetensors, write_sidecar
from vmoe_prc.checkpoints.names import nested
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER
from vmoe_prc.workdir.paths import user_path

WRITTEN_FORMATS = (
    "give FILE.safetensors, or the prefix of a V-MoE checkpoint, which gets .index and .data files"
)
FORMATS = "a run's work directory, the prefix of a V-MoE checkpoint, or a .safetensors or .npz file"


def read_params(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the parameters of a checkpoint to the host.

    Args:
      prefix: A work directory (its newest checkpoint; the average of the parameters, if it
        kept one), the prefix of a checkpoint in V-MoE's format, a `.safetensors` file, or
        an `.npz` file as ViT was released in. Local, or `gs://`.

    Returns:
      Arrays by their names, such as `params/head/kernel`.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    path = user_path(prefix)
    if path.suffix == ".npz":
        params = _read_npz(path)
    elif path.suffix == ".safetensors":
        params = safetensors.load(path)
    elif epath.Path(f"{os.fspath(path)}.index").exists():
        params = vmoe_format.restore(path)
    elif (path / CHECKPOINT_FOLDER).exists():
        params = {"params": _read_run(path / CHECKPOINT_FOLDER)}
    else:
        raise CheckpointError(f"{prefix}: not {FORMATS}")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    inner = {name: x for name, x in flat.items() if name.startswith("params/")}
    # Files that hold nothing else than parameters have no level of that name.
    return inner or {f"params/{name}": x for name, x in flat.items()}


def write_params(
    path: str | os.PathLike[str],
    params: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes parameters to one safetensors file, or in V-MoE's format.

    Args:
      path: A path that ends in `.safetensors`, or the prefix of a V-MoE checkpoint, without a
        suffix.
      params: Arrays by their names, as `read_params` gives them.
      metadata: What `metadata.read_metadata` gives: configuration and classes.

    Raises:
      CheckpointError: If the path has another suffix.
    """
    path = user_path(path)
    # A suffix such as .onnx promises another format; one such as .1 is part of a name.
    if path.suffix != ".safetensors" and path.suffix[1:2].isalpha():
        raise CheckpointError(f"{path}: {path.suffix} files are not written; {WRITTEN_FORMATS}")
    tree = flax.traverse_util.unflatten_dict(dict(params), sep="/")
    if path.suffix == ".safetensors":
        safetensors.save(path, tree["params"], as_safetensors(metadata or {}))
    else:
        vmoe_format.save(path, tree)
        if metadata:
            write_sidecar(path, metadata)


def _read_run(directory: epath.Path) -> Any:
    try:
        return restore_part(directory, name="ema_params")
    except CheckpointError:
        return restore_part(directory)


def _read_npz(path: epath.Path) -> dict[str, Any]:
    flat: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for name in arrays.files:
                renamed = re.sub("^opt/target/", "", name)
                if renamed in flat:
                    raise ValueError(f"two arrays are named {renamed!r}")
                flat[renamed] = arrays[name]
    # As zlib, zipfile and NumPy raise them for damaged archives.
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, SyntaxError) as error:
        raise _unreadable(path, error) from error
    if not flat:
        raise CheckpointError(f"{path}: has no arrays")
    return nested(flat, path)


def _unreadable(path: epath.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read: {' '.join(str(error).split())}")
