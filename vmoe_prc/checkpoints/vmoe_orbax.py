"""Reads the checkpoints that V-MoE's current program writes with Orbax."""

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


def restore_params(workdir: epath.Path) -> Any:
    """Reads the parameters of the newest checkpoint to the host.

    Args:
      workdir: Work directory of a run of V-MoE's program.

    Returns:
      Nested dicts of NumPy arrays.

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
            if "params" not in tree:
                raise CheckpointError(f"{directory / str(step) / _STATE} holds no 'params'")
            abstract = {
                key: jax.tree.map(lambda _, key=key: 0 if key == "params" else ocp.PLACEHOLDER, x)
                for key, x in tree.items()
            }
            read = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
            wanted = ocp.args.PyTreeRestore(item=abstract, restore_args=read)
            restored = manager.restore(step, args=ocp.args.Composite(**{_STATE: wanted}))
    except CheckpointError:
        raise
    except Exception as error:  # What a damaged file raises depends on where it is.
        raise CheckpointError(f"{directory}: cannot be read: {error}") from error
    return restored[_STATE]["params"]
