"""Reads and writes the parameters of a model in all supported formats."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from vmoe_prc.checkpoints import npz, pretrained, safetensors, vmoe_format, vmoe_orbax
from vmoe_prc.checkpoints.manager import CheckpointError, restore_params
from vmoe_prc.checkpoints.metadata import as_safetensors, write_sidecar
from vmoe_prc.checkpoints.names import flattened, nested
from vmoe_prc.checkpoints.torch_vit import TorchVit
from vmoe_prc.runtime.mesh import shard
from vmoe_prc.runtime.trees import named_leaves
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER, PARAMS_FILE, PREPROCESSING_FILE
from vmoe_prc.workdir.paths import user_path

T = TypeVar("T")

WRITTEN_FORMATS = (
    "give FILE.safetensors, or the prefix of a V-MoE checkpoint, which gets .index and .data files"
)
FORMATS = (
    "a run's work directory, an exported folder, the prefix of a V-MoE checkpoint, a .safetensors "
    "or .npz file, or a folder of timm or Hugging Face"
)


def read_params(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the parameters of a checkpoint to the host.

    Args:
      prefix: A work directory (its newest checkpoint; the average of the parameters, if it
        kept one), also of V-MoE's program; a folder that `checkpoints.export` wrote; the prefix
        of a checkpoint in V-MoE's format, a `.safetensors` file, an `.npz` file as ViT was
        released in, or a folder of a vision transformer of timm or Hugging Face. Local, or
        `gs://`.

    Returns:
      Arrays by their names, such as `params/head/kernel`.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    path = user_path(prefix)
    if path.suffix == ".npz":
        params = nested(npz.read_npz(path), path)
    elif path.suffix == ".safetensors":
        if (opened := pretrained.open_torch(path)) is not None:
            return _noted(opened, path)
        params = safetensors.load(path)
    elif _is_vmoe_format(path):
        params = vmoe_format.restore(path)
    elif (path / PREPROCESSING_FILE).exists():
        params = safetensors.load(path / PARAMS_FILE)
    elif (path / CHECKPOINT_FOLDER).exists():
        params = {"params": restore_params(path / CHECKPOINT_FOLDER)}
    elif vmoe_orbax.is_vmoe_workdir(path):
        params = vmoe_orbax.restore(path)
    elif pretrained.is_torch_folder(path):
        opened = pretrained.open_torch(path)
        if opened is None:
            raise CheckpointError(f"{prefix}: has no arrays of a ViT of timm or transformers")
        return _noted(opened, path)
    else:
        raise CheckpointError(f"{prefix}: not {FORMATS}")
    return _named_params(flattened(params))


def check_is_checkpoint(prefix: str | os.PathLike[str]) -> None:
    """Checks that there is something that `read_params` reads, without reading it.

    Raises:
      CheckpointError: If there is not.
    """
    path = user_path(prefix)
    if path.suffix in (".npz", ".safetensors"):
        if not path.exists():
            raise CheckpointError(f"{prefix}: no such file")
    elif not (
        _is_vmoe_format(path)
        or any((path / name).exists() for name in (PREPROCESSING_FILE, CHECKPOINT_FOLDER))
        or vmoe_orbax.is_vmoe_workdir(path)
        or pretrained.is_torch_folder(path)
    ):
        raise CheckpointError(f"{prefix}: not {FORMATS}")


@dataclasses.dataclass(frozen=True)
class StoredParams:
    """Parameters in storage, of which parts can be read.

    Attributes:
      shapes: Shapes and dtypes of the arrays by their names, such as `params/head/kernel`.
      read: Reads arrays by their names to the host.
      read_onto: Reads arrays to the shardings by their names. From a checkpoint in V-MoE's
        format each process reads only the slices that its devices hold.
    """

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[Collection[str]], dict[str, np.ndarray]]
    read_onto: Callable[[Mapping[str, jax.sharding.Sharding]], dict[str, jax.Array]]


def open_params(prefix: str | os.PathLike[str]) -> StoredParams:
    """Opens the parameters of a checkpoint.

    Args:
      prefix: As of `read_params`; only V-MoE's format is not read as a whole.

    Raises:
      CheckpointError: If there is none, or it cannot be read; also by the functions returned.
    """
    path = user_path(prefix)
    if path.suffix not in (".npz", ".safetensors") and _is_vmoe_format(path):
        return _open_vmoe_format(path)
    arrays = read_params(path)

    return StoredParams(
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()},
        lambda names: {name: arrays[name] for name in names},
        lambda shardings: {
            name: shard(arrays[name], sharding) for name, sharding in shardings.items()
        },
    )


def read_optimizer_state(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the step and the state of the optimiser of a run of V-MoE's or PRC's program.

    Args:
      prefix: Prefix of a checkpoint in V-MoE's format, or a work directory of its program.

    Returns:
      Arrays by their names there: `step`, and such as `opt_state/2/mu/head/kernel`.

    Raises:
      CheckpointError: If it holds parameters only, as released checkpoints do, or cannot be read.
    """
    path = user_path(prefix)
    if _is_vmoe_format(path):
        names = named_leaves(vmoe_format.read_index(path)[0])
        wanted = {name for name in names if name == "step" or name.startswith("opt_state/")}
        if "step" not in wanted or len(wanted) == 1:
            raise CheckpointError(f"{prefix}: holds no state of an optimiser")
        arrays = named_leaves(vmoe_format.restore(path, names=wanted))
        return {name: arrays[name] for name in wanted}
    if vmoe_orbax.is_vmoe_workdir(path):
        return named_leaves(vmoe_orbax.restore(path, {"step", "opt_state"}))
    raise CheckpointError(f"{prefix}: no checkpoint of V-MoE's program with an optimiser's state")


def _is_vmoe_format(path: epath.Path) -> bool:
    return epath.Path(f"{os.fspath(path)}.index").exists()


def _open_vmoe_format(path: epath.Path) -> StoredParams:
    entries = named_leaves(vmoe_format.read_index(path)[0])
    # By our names, the names in the files.
    stored = _named_params({name: name for name in entries})

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        arrays = named_leaves(vmoe_format.restore(path, names={stored[n] for n in names}))
        return {name: arrays[stored[name]] for name in names}

    def read_onto(shardings: Mapping[str, jax.sharding.Sharding]) -> dict[str, jax.Array]:
        tree = nested({stored[name]: sharding for name, sharding in shardings.items()}, path)
        arrays = named_leaves(vmoe_format.restore(path, tree))
        return {name: arrays[stored[name]] for name in shardings}

    shapes = {
        name: jax.ShapeDtypeStruct(entries[key].shape, entries[key].dtype)
        for name, key in stored.items()
    }
    return StoredParams(shapes, read, read_onto)


def _named_params(flat: Mapping[str, T]) -> dict[str, T]:
    """Selects the parameters of a checkpoint, and names them such as `params/head/kernel`."""
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
      metadata: Result of `metadata.read_metadata`: configuration and classes.

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


def _noted(opened: TorchVit, path: epath.Path) -> dict[str, np.ndarray]:
    for note in opened.notes:
        logging.warning("%s: %s", path, note)
    return opened.params


def check_params(
    model: nn.Module,
    image_shape: tuple[int, ...],
    flat: Mapping[str, np.ndarray],
    prefix: str | os.PathLike[str],
) -> None:
    """Compares parameters with those that a model has, and refuses diverged runs.

    Args:
      model: The model.
      image_shape: (N, H, W, 3) of its images.
      flat: Arrays by name, as of `read_params`.
      prefix: Where they were read, for errors.

    Raises:
      CheckpointError: If a parameter is missing, unknown, of another shape, or not finite.
    """
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    expected = flattened(jax.eval_shape(model.init, jax.random.key(0), images))
    for name in sorted(expected.keys() | flat.keys()):
        found, wanted = (x[name].shape if name in x else "nothing" for x in (flat, expected))
        if found != wanted:
            raise CheckpointError(
                f"{prefix}: {name} does not fit the configuration: {found} there, {wanted} here"
            )
        # Gates that are NaN would choose the same experts for all tokens.
        if not np.all(np.isfinite(np.asarray(flat[name], np.float32))):
            raise CheckpointError(f"{prefix}: {name} is not finite: the run diverged")
