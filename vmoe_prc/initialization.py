"""Starts a run from the parameters of another one, whatever program wrote them."""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from vmoe_prc.checkpoints.orbax import CheckpointError, restore_params
from vmoe_prc.checkpoints.transfer import format_table, transfer
from vmoe_prc.config import ConfigError
from vmoe_prc.train_state import TrainState

FIELD = "config.initialization"
CHECKPOINT_FOLDER = "checkpoints"


def read_params(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the parameters of a checkpoint to the host.

    Args:
      prefix: A work directory (its newest checkpoint; the average of the parameters, if it
        kept one), or an `.npz` file as ViT was released in. Local, or `gs://`.

    Returns:
      Arrays by their names, such as `params/head/kernel`.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    path = epath.Path(prefix)
    if path.suffix == ".npz":
        params = _read_npz(path)
    elif (path / CHECKPOINT_FOLDER).exists():
        params = {"params": _read_run(path / CHECKPOINT_FOLDER)}
    else:
        raise CheckpointError(f"{prefix}: neither a run with checkpoints nor an .npz file")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    inner = {name: x for name, x in flat.items() if name.startswith("params/")}
    # Files that hold nothing else than parameters have no level of that name.
    return inner or {f"params/{name}": x for name, x in flat.items()}


def initialize(state: TrainState, options: Mapping[str, Any]) -> tuple[TrainState, str]:
    """Replaces the parameters of a new state by those of a checkpoint.

    Step and optimiser state stay new; an average of the parameters begins with them.

    Args:
      state: The initial state, on its devices.
      options: `config.initialization`, with a `prefix`.

    Returns:
      The state, sharded as before, and a table of what was loaded, changed, left new and
      left unused.

    Raises:
      ConfigError: If the checkpoint cannot be read, or does not fit the model.
    """
    try:
        source = read_params(options["prefix"])
    except CheckpointError as error:
        raise ConfigError(f"{FIELD}.prefix", options["prefix"], str(error)) from None
    old = flax.traverse_util.flatten_dict({"params": state.params}, sep="/")
    arrays, moved = transfer(
        source,
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in old.items()},
        options["rules"],
        raise_if_source_unmatched=options["raise_if_source_unmatched"],
        raise_if_target_unmatched=options["raise_if_target_unmatched"],
        field=FIELD,
    )
    new = {
        name: _place(arrays[name], x.sharding) if name in arrays else x for name, x in old.items()
    }
    params = flax.traverse_util.unflatten_dict(new, sep="/")["params"]
    average = None if state.ema_params is None else jax.tree.map(jax.numpy.copy, params)
    return state.replace(params=params, ema_params=average), format_table(moved)


def _place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Each process sends its own devices' parts of an array that all have read."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _read_run(directory: epath.Path) -> Any:
    try:
        return restore_params(directory, name="ema_params")
    except CheckpointError:
        return restore_params(directory)


def _read_npz(path: epath.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            flat = {re.sub("^opt/target/", "", name): arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
