"""Starts a run from the parameters of another run or of a released checkpoint."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.names import flattened
from vmoe_prc.checkpoints.params import check_is_checkpoint, open_params, read_optimizer_state
from vmoe_prc.checkpoints.transfer import format_table, plan_reading, transfer
from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.mesh import shard
from vmoe_prc.runtime.trees import map_named
from vmoe_prc.steps.state import TrainState

FIELD = "config.initialization"


def check_prefix(options: Mapping[str, Any]) -> None:
    """Checks that a new run has the checkpoint that it starts from, without reading it.

    Args:
      options: `config.initialization`.

    Raises:
      ConfigError: If there is none.
    """
    if options["prefix"] is None:
        return
    try:
        check_is_checkpoint(options["prefix"])
    except CheckpointError as error:
        raise ConfigError(f"{FIELD}.prefix", options["prefix"], str(error)) from None


def initialize(
    state: TrainState, options: Mapping[str, Any], grid: tuple[int, int] | None = None
) -> tuple[TrainState, str]:
    """Replaces the parameters of a new state by the parameters of a checkpoint.

    Step and optimiser state stay new, unless `optimizer_state` is on; an average of the parameters
    begins with them.

    Args:
      state: The initial state, on its devices.
      options: `config.initialization`, with a `prefix`.
      grid: (rows, columns) of the model's patches; a square grid if None.

    Returns:
      The state, sharded as before, and a table of what was loaded, changed, left new and
      left unused.

    Raises:
      ConfigError: If the checkpoint cannot be read, or does not fit the model.
    """
    old = flattened({"params": state.params})
    target = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in old.items()}
    matching = {
        "rules": options["rules"],
        "raise_if_source_unmatched": options["raise_if_source_unmatched"],
        "raise_if_target_unmatched": options["raise_if_target_unmatched"],
        "field": FIELD,
    }
    try:
        stored = open_params(options["prefix"])
        copied, unused = plan_reading(stored.shapes, target, **matching)
        placeholders = {
            **{source: _zeros(target[name]) for name, source in copied.items()},
            **{source: _zeros(stored.shapes[source]) for source in unused},
        }
        whole = stored.read(stored.shapes.keys() - placeholders.keys())
        # Most arrays are copied: of these each process needs only the parts of its devices.
        parts = stored.read_onto({source: old[name].sharding for name, source in copied.items()})
    except CheckpointError as error:
        raise ConfigError(f"{FIELD}.prefix", options["prefix"], str(error)) from None
    arrays, moved = transfer({**placeholders, **whole}, target, **matching, grid=grid)
    new = {
        name: parts[copied[name]].astype(x.dtype)
        if name in copied
        else shard(arrays[name], x.sharding)
        if name in arrays
        else x
        for name, x in old.items()
    }
    params = flax.traverse_util.unflatten_dict(new, sep="/")["params"]
    average = None if state.ema_params is None else jax.tree.map(jax.numpy.copy, params)
    state = dataclasses.replace(state, params=params, ema_params=average)
    if options.get("optimizer_state"):
        state = _with_optimizer_state(state, options["prefix"], copied)
    return state, format_table(moved)


def _with_optimizer_state(state: TrainState, prefix: str, copied: Mapping[str, str]) -> TrainState:
    """Loads the step, and what the optimiser keeps for each parameter.

    The states of V-MoE's optimisers and ours differ only in the places of their parts, which are
    numbered: `2/mu/head/kernel` there may be `1/mu/head/kernel` here.

    Args:
      state: The state with its parameters.
      prefix: The checkpoint.
      copied: Name in the checkpoint by name of each parameter that is copied as it is.

    Raises:
      ConfigError: If there is none, or it does not fit the optimiser.
    """
    field = f"{FIELD}.optimizer_state"
    try:
        stored = read_optimizer_state(prefix)
    except CheckpointError as error:
        raise ConfigError(field, True, str(error)) from None
    step = stored["step"].astype(np.int32)
    by_part = {re.sub(r"^opt_state/(\d+/)*", "", name): x for name, x in stored.items()}

    def loaded(name: str, new: jax.Array) -> jax.Array:
        part = re.sub(r"^(\d+/)*", "", name)
        if part == "count":  # The number of updates: the released programs skip none.
            return shard(step.astype(new.dtype), new.sharding)
        kind, _, parameter = part.partition("/")
        source = copied.get(f"params/{parameter}")
        if source is None:
            raise ConfigError(field, True, f"needs the parameter {parameter!r} to be copied")
        value = by_part.get(f"{kind}/{source.removeprefix('params/')}")
        if value is None or value.shape != new.shape:
            found = "nothing" if value is None else f"shape {value.shape}"
            expected = f"needs {kind!r} of {parameter!r} of shape {new.shape}; there is {found}"
            raise ConfigError(field, True, expected)
        return shard(value.astype(new.dtype), new.sharding)

    return dataclasses.replace(
        state,
        step=shard(step, state.step.sharding),
        opt_state=map_named(loaded, state.opt_state),
    )


def _zeros(array: jax.ShapeDtypeStruct) -> np.ndarray:
    """Stands for an array that is not read; takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)
