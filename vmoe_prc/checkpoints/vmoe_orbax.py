"""Reads the checkpoints that V-MoE's current program writes with Orbax."""

from collections.abc import Set
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vmoe_prc.checkpoints.manager import CheckpointError

# WORKDIR/ckpt/STEP/state holds the training state.
FOLDER = "ckpt"
_STATE = "state"


def is_vmoe_workdir(path: epath.Path) -> bool:
    """Whether a directory is the work directory of V-MoE's program."""
    return (path / FOLDER).exists()


def restore(workdir: epath.Path, parts: Set[str] = frozenset({"params"})) -> dict[str, Any]:
    """Reads parts of the training state of the newest checkpoint to the host.

    Args:
      workdir: Work directory of a run of V-MoE's program.
      parts: Names of the parts, such as `params`, `opt_state` and `step`.

    Returns:
      Trees of NumPy arrays by the names of the parts.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    directory = (workdir / FOLDER).absolute()
    handlers = {_STATE: ocp.PyTreeCheckpointHandler()}
    try:
        with ocp.CheckpointManager(directory, item_handlers=handlers) as manager:
            step = manager.latest_step()
            if step is None:
                raise CheckpointError(f"{directory}: holds no checkpoint")
            tree = manager.item_metadata(step)[_STATE].tree
            if missing := sorted(parts - tree.keys()):
                where = directory / str(step) / _STATE
                raise CheckpointError(f"{where} holds no {missing[0]!r}")
            abstract = {
                key: jax.tree.map(lambda _, key=key: 0 if key in parts else ocp.PLACEHOLDER, x)
                for key, x in tree.items()
            }
            read = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
            wanted = ocp.args.PyTreeRestore(item=abstract, restore_args=read)
            restored = manager.restore(step, args=ocp.args.Composite(**{_STATE: wanted}))
    except CheckpointError:
        raise
    except Exception as error:  # What a damaged file raises depends on where it is.
        raise CheckpointError(f"{directory}: cannot be read: {error}") from error
    return {key: restored[_STATE][key] for key in parts}
