"""Accuracy against capacity: how much of the experts' room a trained model needs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import is_correct, is_labelled

CAPACITIES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)


def drop_curve(
    run: OpenedRun, split: str | None = None, capacities: Sequence[float] = CAPACITIES
) -> pd.DataFrame:
    """Measures accuracy and drops at several capacity factors, as V-MoE's figure on BPR does.

    Args:
      run: The opened run; its experts must not choose tokens.
      split: Name of a split with one view.
      capacities: Capacity factors.

    Returns:
      One row per capacity with and without batch priority (tokens of the largest gates first),
      and one dropless row: `capacity` (NaN: dropless), `batch_priority`, `accuracy` over the
      images with labels (NaN without any) and `dropped`, the share of dropped choices.

    Raises:
      ConfigError: If there is no such split, no MoE block, or experts choose tokens.
    """
    run.choose_blocks()
    if run.experts_choose:
        raise ConfigError("--workdir", run.name, "its experts choose tokens: capacity is routing")
    split = run.choose_split(split, two_views=False)
    variants = [(None, False)] + [(c, p) for p in (False, True) for c in capacities]
    rows = []
    for capacity, priority in variants:
        if capacity is None:
            model = run.dropless()
        else:
            options = {"capacity_factor": capacity, "batch_priority": priority}
            model = run.with_dispatcher(name="gather", **options)
        row = {"capacity": capacity, "batch_priority": priority, **_measure(model, split)}
        rows.append(row)
    return pd.DataFrame(rows)


def _measure(run: OpenedRun, split: str) -> dict[str, float]:
    route = make_routing_step(run.model)

    def step(params, batch):
        logits, choices = route(params, batch["image"])
        mask = batch["mask"]
        dropped = [jnp.sum(~c.kept * mask[:, None, None]) for c in choices.values()]
        chosen = [jnp.sum(c.selected * mask[:, None, None]) for c in choices.values()]
        return {
            "labelled": jnp.sum(is_labelled(batch["labels"]) & mask),
            "correct": jnp.sum(is_correct(logits, batch["labels"]) & mask),
            "dropped": sum(dropped),
            "choices": sum(chosen),
        }

    step = jax.jit(step, out_shardings=replicated(run.mesh))
    with jax.set_mesh(run.mesh):
        parts = [jax.device_get(step(run.params, batch)) for batch in run.batches(split)]
    total = {name: float(sum(part[name] for part in parts)) for name in parts[0]}
    return {
        "accuracy": total["correct"] / total["labelled"] if total["labelled"] else np.nan,
        "dropped": total["dropped"] / total["choices"],
    }
