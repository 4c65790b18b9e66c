"""Margins of routers, distances to a switch of experts, and jumps of the output there."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.external_routing import apply_with_logits
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.swap import swap_routings
from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import ConfigError
from vmoe_prc.models import apply_model
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.views import by_image

SMALL = 0.1
QUANTILES = (0.05, 0.5, 0.95)


def router_margin(logits: Float[Array, "... E"], num_selected: int) -> Float[Array, "..."]:
    """Returns z_(K) - z_(K+1): logit of the last chosen expert minus the next logit."""
    top = jax.lax.top_k(logits, num_selected + 1)[0]
    return top[..., -2] - top[..., -1]


def margin_table(
    run: OpenedRun, split: str | None = None, blocks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Measures margins of routers, and jumps of the output where experts switch; dropless.

    Args:
      run: The opened run, whose K < E.
      split: Name of a split with one view.
      blocks: Blocks to measure; all blocks with experts by default.

    Returns:
      One row per block: `margin_05`, `margin_50`, `margin_95`, quantiles over tokens of the
      margin of the logits; `small`, share of tokens with a margin below 0.1; `distance`, median
      over images of the first-order distance to the nearest switch, the smallest margin of an
      image over the norm of its gradient (Euclidean, pixel range 1); `jump`, mean distance of
      the image's logits if this token, and no other, switches at the same image; and
      `relative_jump`, the same divided by the norm of the logits.

    Raises:
      ConfigError: If there is no such split or block, or there is no expert to switch to.
    """
    split, blocks = run.choose_split(split, two_views=False), run.choose_blocks(blocks)
    k = run.num_selected_experts
    if k >= run.num_experts:
        raise ConfigError("--workdir", run.name, "every expert is selected: there are no margins")
    measure = functools.partial(_measure, run.dropless().model, k)
    scale = run.value_range(split).size
    rows = []
    with jax.set_mesh(run.mesh):
        steps = {
            block: jax.jit(functools.partial(measure, block), out_shardings=replicated(run.mesh))
            for block in blocks
        }
        found: dict[str, list[Mapping[str, np.ndarray]]] = {block: [] for block in blocks}
        for batch in run.batches(split):
            for block, step in steps.items():
                values, mask = jax.device_get(step(run.params, batch["image"], batch["mask"]))
                found[block].append({name: x[mask] for name, x in values.items()})
    for block, parts in found.items():
        total = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        quantiles = np.quantile(total["margin"], QUANTILES)
        rows.append(
            {
                "block": block,
                **{
                    f"margin_{round(100 * q):02d}": float(value)
                    for q, value in zip(QUANTILES, quantiles, strict=True)
                },
                "small": float(np.mean(total["margin"] < SMALL)),
                "distance": float(np.median(total["distance"])) / scale,
                "jump": float(np.mean(total["jump"])),
                "relative_jump": float(np.mean(total["jump"] / total["norm"])),
            }
        )
    return pd.DataFrame(rows)


def _measure(
    model: nn.Module,
    k: int,
    block: str,
    params: Any,
    images: Float[Array, "N H W C"],
    mask: Bool[jax.Array, " N"],
) -> tuple[dict[str, jax.Array], jax.Array]:
    def margins(images):
        outputs, routings = apply_model(model, params, images)
        logits = {b: by_image(r.logits, len(images)) for b, r in routings.items()}
        margin = router_margin(logits[block], k)  # (N, T)
        # Images do not depend on each other: the gradient of the sum holds the gradient of each.
        return margin.min(axis=1).sum(), (outputs, logits, margin)

    gradient, (outputs, logits, margin) = jax.grad(margins, has_aux=True)(images)
    norm = jnp.linalg.norm(gradient.reshape(len(images), -1), axis=1)
    nearest = jnp.arange(margin.shape[1]) == margin.argmin(axis=1)[:, None]
    switched = swap_routings(logits[block], k, jax.random.key(0))["next_best"]
    switched = jnp.where(nearest[..., None], switched, logits[block])
    # Blocks after this one route with their own logits.
    after, _ = apply_with_logits(model, params, images, {block: switched})
    values = {
        "margin": margin,
        "distance": margin.min(axis=1) / jnp.maximum(norm, 1e-12),
        "jump": jnp.linalg.norm((after - outputs).astype(jnp.float32), axis=-1),
        "norm": jnp.linalg.norm(outputs.astype(jnp.float32), axis=-1),
    }
    return values, mask
