"""The parameters of a model, in whatever format a program left them."""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
from etils import epath

from vmoe_prc.checkpoints import safetensors, vmoe_format
from vmoe_prc.checkpoints.manager import CheckpointError, restore_part
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER

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
    path = epath.Path(prefix)
    if path.suffix == ".npz":
        params = _read_npz(path)
    elif path.suffix == ".safetensors":
        params = safetensors.load(path)
    elif epath.Path(f"{os.fspath(prefix)}.index").exists():
        params = vmoe_format.restore(prefix)
    elif (path / CHECKPOINT_FOLDER).exists():
        params = {"params": _read_run(path / CHECKPOINT_FOLDER)}
    else:
        raise CheckpointError(f"{prefix}: not {FORMATS}")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    inner = {name: x for name, x in flat.items() if name.startswith("params/")}
    # Files that hold nothing else than parameters have no level of that name.
    return inner or {f"params/{name}": x for name, x in flat.items()}


def write_params(path: str | os.PathLike[str], params: Mapping[str, np.ndarray]) -> None:
    """Writes parameters to one safetensors file, or in V-MoE's format.

    Args:
      path: A path that ends in `.safetensors`, or else the prefix of a V-MoE checkpoint.
      params: Arrays by their names, as `read_params` gives them.
    """
    tree = flax.traverse_util.unflatten_dict(dict(params), sep="/")
    if epath.Path(path).suffix == ".safetensors":
        safetensors.save(path, tree["params"])
    else:
        vmoe_format.save(path, tree)


def _read_run(directory: epath.Path) -> Any:
    try:
        return restore_part(directory, name="ema_params")
    except CheckpointError:
        return restore_part(directory)


def _read_npz(path: epath.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            flat = {re.sub("^opt/target/", "", name): arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
