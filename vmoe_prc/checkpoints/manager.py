"""Saves the state of a run with Orbax, and restores it, on the same devices or others."""

import contextlib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from vmoe_prc.checkpoints.barriers import CheckpointBarriers
from vmoe_prc.checkpoints.checksum import changed_arrays, checksums
from vmoe_prc.errors import RunError, UserError
from vmoe_prc.runtime.processes import raise_everywhere
from vmoe_prc.runtime.trees import named_leaves

_CHECKSUMS = "checksums"
# Copies of an array write a part each if the parts are at least this large. Orbax cuts the parts
# out with one compiled program for each shape and each copy, which small arrays are not worth.
_SMALLEST_PART = 2**20


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used; its text names the directory and what is wrong."""


def lower_is_better(metric: str) -> bool:
    """Whether a metric, such as 'test/loss', is lower for better models; by its last word."""
    return metric.rpartition("/")[2].endswith(("loss", "error", "nll", "ece"))


class Checkpointer:
    """The checkpoints of one run; a context manager, which waits for the last to be written.

    Args:
      directory: Directory of the checkpoints, made if missing. Each is a directory named by
        its step, which appears only once it is complete.
      keep_last: How many of the newest to keep.
      keep_steps_multiple_of: Number of steps whose multiples are kept as well; None for none.
      keep_best: How many of the best to keep as well.
      best_metric: Name of the metric by which checkpoints are compared, see `lower_is_better`;
        NaN is worst.

    Raises:
      CheckpointError: If the directory cannot be made, or what a checkpoint says of itself is
        damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_last: int = 1,
        keep_steps_multiple_of: int | None = None,
        keep_best: int = 0,
        best_metric: str | None = None,
    ):
        self._directory, self._best_metric = epath.Path(directory).absolute(), best_metric
        policies: list[checkpoint_managers.PreservationPolicy] = [
            checkpoint_managers.LatestN(keep_last)
        ]
        if keep_steps_multiple_of:
            policies.append(checkpoint_managers.EveryNSteps(keep_steps_multiple_of))
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=functools.partial(_goodness, best_metric or ""),
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(
                barrier_sync_fn=CheckpointBarriers(ocp.multihost.get_barrier_sync_fn())
            ),
            # Files that a killed run was writing.
            cleanup_tmp_directories=True,
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=options,
                item_handlers=_handler(),
            )
        except OSError as error:
            raise CheckpointError(f"{self._directory}: cannot be written: {error}") from None
        except Exception as error:
            raise _cannot_open(self._directory, error) from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, *unused: Any) -> None:
        if kind is None:
            self.wait()
        elif jax.process_count() > 1:
            return  # The other processes may not be there to close it with.
        with contextlib.suppress(Exception):  # Known already.
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state in the background; `state` may be donated at once.

        Args:
          step: Number of the step, above the steps of all checkpoints.
          state: Tree of arrays.
          metrics: Metrics of the state; without the best metric it can never be a best one.

        Raises:
          RunError: If it cannot be written, or the one before could not be.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.PyTreeSave(state),
                metrics=dict(metrics) if metrics and self._best_metric in metrics else None,
                custom_metadata={_CHECKSUMS: checksums(state)},
            )
        except Exception as error:
            raise self._cannot_write(error) from error

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """Reads a state onto devices.

        Args:
          abstract_state: Tree of `jax.ShapeDtypeStruct` with the shardings to restore to.
          step: Step of the checkpoint; by default the newest one that is not damaged. Those that
            are, and come after it, are deleted.

        Raises:
          CheckpointError: If there is none, all are damaged, or its arrays have other names
            or shapes.
        """
        damaged = {}
        for candidate in [step] if step is not None else self.steps()[::-1]:
            try:
                # A checkpoint that one process finds damaged is used by none.
                with raise_everywhere():
                    state = self._restore(candidate, abstract_state)
            except CheckpointError:
                raise
            except Exception as error:  # What a damaged file raises depends on where it is.
                damaged[candidate] = _damaged(self._directory, candidate, error)
                logging.warning("%s", damaged[candidate])
            else:
                for later in damaged:
                    # Orbax saves nothing that comes before the newest.
                    self._manager.delete(later)
                return state
        raise CheckpointError("; ".join(damaged.values()) or f"{self._directory}: no checkpoint")

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          RunError: If one of them could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _restore(self, step: int, abstract_state: Any) -> Any:
        self._check_shapes(step, abstract_state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_state)
        args = ocp.args.PyTreeRestore(item=abstract_state, restore_args=restore_args)
        state = self._manager.restore(step, args=args)
        if changed := changed_arrays(state, _written_checksums(self._manager, step)):
            raise ValueError(f"{', '.join(changed)}: not what was written")
        return state

    def _cannot_write(self, error: Exception) -> RunError:
        """Names the directory, the cause and what is left."""
        reason = next(filter(None, str(error).splitlines()), repr(error))
        # Its manager forgets what it will delete once the new one is there.
        steps = sorted(ocp.utils.checkpoint_steps(self._directory))
        kept = ", ".join(map(str, steps)) or "none"
        return RunError(
            f"{self._directory}: a checkpoint cannot be written: {reason} (complete are: {kept})"
        )

    def _check_shapes(self, step: int, abstract_state: Any) -> None:
        saved = _shapes(self._manager.item_metadata(step))
        wanted = _shapes(abstract_state)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"{self._directory / str(step)} does not fit the configuration: {name} "
                    f"is {_describe(saved.get(name))} there, and here {_describe(wanted.get(name))}"
                )


def restore_part(
    directory: str | os.PathLike[str], step: int | None = None, name: str = "params"
) -> Any:
    """Reads only a part of a state, by default its parameters, to the host.

    Args:
      directory: Directory of the checkpoints of a run.
      step: Step of the checkpoint; the newest by default.
      name: Part of the state, such as 'params' or 'ema_params'.

    Returns:
      A tree of NumPy arrays, nested dicts for parameters.

    Raises:
      CheckpointError: If there is no such checkpoint, no such part in it, or not what was
        written.
    """
    return _restore_first(epath.Path(directory).absolute(), step, (name,))


def restore_params(directory: str | os.PathLike[str], step: int | None = None) -> Any:
    """Reads the parameters that a run is evaluated with: their average, if it kept one.

    Args:
      directory: Directory of the checkpoints of a run.
      step: Step of the checkpoint; the newest by default.

    Raises:
      CheckpointError: As `restore_part`; also if only the average is damaged.
    """
    return _restore_first(epath.Path(directory).absolute(), step, ("ema_params", "params"))


def _restore_first(directory: epath.Path, step: int | None, names: Sequence[str]) -> Any:
    """Reads the first of these parts that a checkpoint has."""
    if not directory.exists():
        raise CheckpointError(f"{directory}: no such directory")
    try:
        manager = ocp.CheckpointManager(directory, item_handlers=ocp.PyTreeCheckpointHandler())
    except Exception as error:
        raise _cannot_open(directory, error) from error
    with manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise CheckpointError(f"{directory}: no checkpoint of step {step}")
        try:
            parts, written = _read_first(manager, step, names), _written_checksums(manager, step)
        except Exception as error:  # What a damaged file raises depends on where it is.
            raise CheckpointError(_damaged(directory, step, error)) from error
    if not parts:
        raise CheckpointError(f"{directory / str(step)} holds no {names[-1]!r}")
    if changed := changed_arrays(parts, written):
        raise CheckpointError(_damaged(directory, step, ", ".join(changed)))
    (part,) = parts.values()
    return part


def _read_first(manager: ocp.CheckpointManager, step: int, names: Sequence[str]) -> dict[str, Any]:
    """Reads the first of these parts that a checkpoint has, by its name; {} if it has none."""
    tree = manager.item_metadata(step)
    name = next((name for name in names if tree.get(name) is not None), None)
    if name is None:
        return {}
    abstract = {
        key: jax.tree.map(lambda _, key=key: 0 if key == name else ocp.PLACEHOLDER, part)
        for key, part in tree.items()
    }
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
    return {name: manager.restore(step, args=args)[name]}


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Reads and writes trees of arrays and numbers."""
    types = ocp.type_handlers
    arrays = types.ArrayHandler(min_slice_bytes_for_replica_parallel=_SMALLEST_PART)
    numbers = [(kind, types.ScalarHandler()) for kind in (int, float, np.number)]
    registry = types.create_type_handler_registry(
        *numbers, (np.ndarray, types.NumpyHandler()), (jax.Array, arrays)
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _goodness(name: str, metrics: Mapping[str, float]) -> float:
    """Returns a metric as a number that is higher for better checkpoints."""
    value = -metrics[name] if lower_is_better(name) else metrics[name]
    return -math.inf if math.isnan(value) else value


def _damaged(directory: epath.Path, step: int, cause: Exception | str) -> str:
    """Says in one line which checkpoint is damaged, and how that shows."""
    return f"{directory / str(step)} is damaged: {' '.join(str(cause).split())}"


def _cannot_open(directory: epath.Path, error: Exception) -> CheckpointError:
    """Names the checkpoint whose description Orbax cannot read; Orbax reads all at once."""
    names = ocp.path.step.standard_name_format()
    for step in ocp.utils.checkpoint_steps(directory):
        try:
            _ = names.find_step(directory, step).commit_timestamp
        except Exception as reason:  # What a damaged file raises depends on where it is.
            advice = "move it away to use the one before"
            return CheckpointError(f"{_damaged(directory, step, reason)}; {advice}")
    return CheckpointError(f"{directory}: cannot be read: {' '.join(str(error).split())}")


def _written_checksums(manager: ocp.CheckpointManager, step: int) -> dict[str, int]:
    return (manager.metadata(step).custom_metadata or {}).get(_CHECKSUMS, {})


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = named_leaves(tree)
    return {name: tuple(leaf.shape) for name, leaf in leaves.items() if hasattr(leaf, "shape")}


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
