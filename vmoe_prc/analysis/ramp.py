"""Jumps along a ramp of noise, and how much of them dropped tokens cause.

The levels of an image are classified in order, in the groups in which the model routes. Where
capacity is limited, the last images of a group find their experts full, so the output jumps
from one group to the next, although the router sees nearly the same image. Without drops only
the router can make it jump. Dependence of a result on the other images of a batch is the
subject of "Buffer Overflow in Mixture of Experts" (arXiv 2402.05526, from its abstract).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.arrays import Array, Float
from vmoe_prc.config import ConfigError
from vmoe_prc.models import apply_model
from vmoe_prc.runtime.mesh import batch_sharding, replicated, shard
from vmoe_prc.runtime.processes import gathered

# Capacity factors; None is dropless.
CAPACITIES = (None, 4.0, 1.5, 1.05)
LEVELS, SIGMA, IMAGES = 128, 0.3, 24


class RampResult(NamedTuple):
    """Tables of the ramp.

    Attributes:
      positions: One row per capacity and position of an image in its group: `dropped`, share of
        its choices that are dropped; `total_variation`, of the class probabilities, from the
        image before it to this one; `changed_first`, share of tokens whose first expert
        changes in this step.
      capacities: One row per capacity: `within_group`, mean total variation of steps inside a
        group, `between_groups`, of steps to the next group, and their `ratio`;
        `batch_dependence`, share of predictions of the split that change if other images
        make up the rest of the batch.
      curves: One row per capacity and level, for the first image: `probability` of the class
        that is predicted without noise.
    """

    positions: pd.DataFrame
    capacities: pd.DataFrame
    curves: pd.DataFrame


def ramp_test(
    run: OpenedRun,
    split: str | None = None,
    *,
    capacities: Sequence[float | None] = CAPACITIES,
    num_images: int = IMAGES,
    levels: int = LEVELS,
    sigma: float = SIGMA,
    seed: int = 0,
) -> RampResult:
    """Classifies `levels` levels of noise of each image, in order, at several capacities.

    Args:
      run: The opened run.
      split: Name of a split with one view.
      capacities: Capacity factors to try; None is dropless.
      num_images: Images to ramp, from the beginning of the split.
      levels: Number of levels, from 0 to `sigma`; whole batches of groups on all devices.
      sigma: Largest standard deviation of the noise, with a pixel range of 1.
      seed: Seed of the noise, which is the same for all levels of an image, and of the batches.

    Raises:
      ConfigError: If there is no such split, or the model has no MoE blocks.
    """
    run.choose_blocks()
    split = run.choose_split(split, two_views=False)
    with jax.set_mesh(run.mesh):
        batch = gathered(next(run.batches(split)))
        images = batch["image"][batch["mask"]]
        group = _group_images(run, images)
        if levels % (group * run.mesh.size):
            expected = f"must be a multiple of {group} images per group x {run.mesh.size} devices"
            raise ConfigError("--levels", levels, expected)
        ramps = _ramps(run, split, images[:num_images], levels, sigma, seed)
        positions, summary, curves = [], [], []
        for capacity in capacities:
            model = run.dropless() if capacity is None else _limited(run, capacity)
            found = _follow(model, ramps)
            name = "dropless" if capacity is None else f"{capacity:g}"
            positions.append(_by_position(found, group).assign(capacity=name))
            row = _steps(found, group)
            row |= {"batch_dependence": _batch_dependence(model, batch, seed)}
            summary.append({"capacity": name, **row})
            level = np.linspace(0, sigma, levels)
            curve = {"capacity": name, "level": level, "probability": found["probability"][0]}
            curves.append(pd.DataFrame(curve))
    positions, curves = (pd.concat(x, ignore_index=True) for x in (positions, curves))
    return RampResult(positions, pd.DataFrame(summary), curves)


def _limited(run: OpenedRun, capacity: float) -> OpenedRun:
    options = {} if run.experts_choose else {"name": "gather"}
    return run.with_dispatcher(**options, capacity_factor=capacity)


def _ramps(
    run: OpenedRun,
    split: str,
    images: Float[np.ndarray, "N H W C"],
    levels: int,
    sigma: float,
    seed: int,
) -> Float[np.ndarray, "N L H W C"]:
    value_range = run.value_range(split)
    noise = np.random.default_rng(seed).normal(size=(len(images), 1, *images.shape[1:]))
    level = np.linspace(0, sigma, levels).reshape(-1, 1, 1, 1)
    noisy = images[:, None] + value_range.size * level * noise
    return np.clip(noisy, value_range.low, value_range.high).astype(np.float32)


def _group_images(run: OpenedRun, images: Array) -> int:
    """Returns the number of images of a routing group, at least 1."""
    patch_height, patch_width = run.config.model.patch_size
    height, width = images.shape[1:3]
    tokens = (height // patch_height) * (width // patch_width) + run.class_token
    return max(1, dict(run.model.encoder)["moe"]["group_size"] // tokens)


def _follow(
    run: OpenedRun, ramps: Float[np.ndarray, "N L H W C"]
) -> dict[str, Float[np.ndarray, "N *L"]]:
    """Classifies the levels of each image as one batch.

    Returns:
      `dropped` (N, L); `changed_first` and `total_variation` (N, L), from the level before,
      NaN for the first; `probability` (N, L) of the class predicted at the first level.
    """
    route = make_routing_step(run.model)

    def step(params, images):
        logits, choices = route(params, images)
        dropped = [
            jnp.sum(c.selected & ~c.kept, axis=(1, 2)) / jnp.sum(c.selected, axis=(1, 2))
            for c in choices.values()
        ]
        firsts = jnp.stack([c.experts[..., 0] for c in choices.values()], axis=1)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        variation = jnp.abs(jnp.diff(probabilities, axis=0)).sum(-1) / 2
        changed = jnp.mean(jnp.diff(firsts, axis=0) != 0, axis=(1, 2))
        first = jnp.full((1,), jnp.nan)
        return {
            "dropped": jnp.mean(jnp.stack(dropped), axis=0),
            "total_variation": jnp.concatenate([first, variation]),
            "changed_first": jnp.concatenate([first, changed]),
            "probability": probabilities[:, probabilities[0].argmax()],
        }

    step = jax.jit(step, out_shardings=replicated(run.mesh))
    sharding = batch_sharding(run.mesh)
    found = [jax.device_get(step(run.params, shard(ramp, sharding))) for ramp in ramps]
    return {name: np.stack([x[name] for x in found]) for name in found[0]}


def _by_position(found: dict[str, np.ndarray], group: int) -> pd.DataFrame:
    position = np.arange(found["dropped"].shape[1]) % group
    return pd.DataFrame(
        [
            {
                "position": p,
                **{
                    name: float(np.nanmean(found[name][:, position == p]))
                    for name in ("dropped", "total_variation", "changed_first")
                },
            }
            for p in range(group)
        ]
    )


def _steps(found: dict[str, np.ndarray], group: int) -> dict[str, float]:
    variation = found["total_variation"][:, 1:]
    to_next = np.arange(1, found["dropped"].shape[1]) % group == 0
    inside = float(variation[:, ~to_next].mean()) if group > 1 else float("nan")
    between = float(variation[:, to_next].mean())
    return {
        "within_group": inside,
        "between_groups": between,
        "ratio": between / inside if inside else float("nan"),
    }


def _batch_dependence(run: OpenedRun, batch: dict[str, np.ndarray], seed: int) -> float:
    """Share of the predictions of a batch that change if it is put in another order.

    Images of a batch share capacity with the other images of their group only, so another
    order of the batch gives them other neighbours.
    """
    sharding = batch_sharding(run.mesh)
    predict = jax.jit(
        lambda params, x: apply_model(run.model, params, x)[0].argmax(-1),
        out_shardings=replicated(run.mesh),
    )
    order = np.random.default_rng(seed).permutation(len(batch["image"]))
    first, second = (
        np.asarray(predict(run.params, shard(images, sharding)))
        for images in (batch["image"], batch["image"][order])
    )
    return float(np.mean((first[order] != second)[batch["mask"][order]]))
