"""Ends a run whose loss, gradients or parameters are not finite."""

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding

from vmoe_prc.data.feed import prefetch_to_device
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.mesh import batch_sharding, replicated
from vmoe_prc.runtime.processes import is_main_process
from vmoe_prc.runtime.trees import named_leaves
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.program import Program
from vmoe_prc.workdir.atomic import atomic_write

NON_FINITE_FOLDER = "non_finite"


def check_params(program: Program, state: TrainState) -> None:
    """Ends the run if its parameters are not finite; waits for the state.

    A state that is evaluated or saved must pass: a model of NaNs has the best agreement.

    Raises:
      RunError: If a parameter, or an average of one, is not finite.
    """
    params = {"params": state.params}
    if state.ema_params is not None:
        params["ema_params"] = state.ema_params
    finite = named_leaves(jax.device_get(_finite(replicated(program.mesh))(params)))
    names = [name for name, is_finite in finite.items() if not is_finite]
    if names:
        raise RunError(
            f"the parameters after step {int(state.step)} are not finite ({_shorten(names)}); "
            "they are neither evaluated nor saved"
        )


def check_progress(state: TrainState) -> None:
    """Ends a run of which no step has made an update.

    Raises:
      RunError: If loss or gradients were not finite in every step.
    """
    if 0 < int(state.step) == int(state.skipped_steps):
        raise RunError(
            f"none of the {int(state.step)} steps has made an update: loss or gradients were "
            "never finite"
        )


@functools.cache
def _finite(sharding: NamedSharding) -> Callable[[Any], Any]:
    def finite(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    return jax.jit(finite, out_shardings=sharding)


def check_finite(program: Program, state: TrainState, workdir: epath.Path) -> None:
    """Ends the run if its state has stopped, see `make_train_step`; waits for the state.

    Saves `non_finite/step_{n}/report.json` with the step, the metrics of its batch and the
    parameters whose gradients are not finite, and the rows of the batch that each process
    reads as `batch_{process}.npz`.

    Args:
      program: The program.
      state: The state after any step.
      workdir: Directory of the run.

    Raises:
      RunError: If too many steps in a row were not finite.
    """
    if int(state.skipped_in_a_row) < program.config.max_skipped_steps:
        return
    step = int(state.step)
    folder = workdir / NON_FINITE_FOLDER / f"step_{step}"
    # The batch is a function of the step, so it can be read again.
    rows: dict[str, Any] = dict(next(program.train_rows(step - 1)))
    with atomic_write(folder / f"batch_{jax.process_index()}.npz") as path, path.open("wb") as file:
        np.savez(file, **rows)
    value_range = program.splits["train"].value_range
    batch = next(prefetch_to_device([rows], batch_sharding(program.mesh), 1, value_range))
    names, metrics = _diagnose(program, state, batch)
    if is_main_process():
        report = {
            "step": step,
            "metrics": {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()},
            "parameters": names,
        }
        with atomic_write(folder / "report.json") as path:
            path.write_text(json.dumps(report, indent=2))
    raise RunError(
        f"{program.config.max_skipped_steps} steps in a row, up to step {step}, had a loss or "
        f"gradients that are not finite ({_shorten(names)}); batch and names are in {folder}"
    )


def _diagnose(
    program: Program, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[list[str], dict[str, float]]:
    """Returns which parameters' gradients are not finite, and the metrics of the step."""

    def diagnose(params: Any, batch: dict[str, jax.Array], step: jax.Array):
        grads, metrics = program.gradients(params, batch, step)
        finite = jax.tree.map(lambda x: jnp.isfinite(optax.tree.norm(x)), grads)
        return finite, metrics

    compiled = jax.jit(diagnose, out_shardings=replicated(program.mesh))
    finite, metrics = jax.device_get(compiled(state.params, batch, state.step - 1))
    names = [name for name, is_finite in named_leaves(finite).items() if not is_finite]
    return names, {name: float(value) for name, value in metrics.items()}


def _shorten(names: list[str], most: int = 3) -> str:
    if not names:
        return "no single parameter is non-finite"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
