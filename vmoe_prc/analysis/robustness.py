"""How routing and accuracy change as images are perturbed or attacked."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.agreement import ALL_BLOCKS
from vmoe_prc.analysis.attacks import EPSILONS, PGD_STEPS, make_attack
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.perturbations import PERTURBATIONS
from vmoe_prc.analysis.routing import make_routing_step
from vmoe_prc.config import ConfigError, nearest

ATTACKS = {"fgsm": 1, "pgd": PGD_STEPS}
KINDS = (*PERTURBATIONS, *ATTACKS)
UNITS = {
    **{name: kind.unit for name, kind in PERTURBATIONS.items()},
    **dict.fromkeys(ATTACKS, "epsilon, 1/255 of the pixel range"),
}


def default_levels(kind: str) -> tuple[float, ...]:
    """Returns the sizes that a perturbation or attack is tried at.

    Raises:
      ConfigError: If there is no such kind.
    """
    if kind not in KINDS:
        allowed = f"unknown; allowed: {', '.join(KINDS)}"
        raise ConfigError("--perturbation", kind, allowed, nearest(kind, KINDS))
    return EPSILONS if kind in ATTACKS else PERTURBATIONS[kind].levels


def robustness_table(
    run: OpenedRun,
    split: str,
    levels: Mapping[str, Sequence[float]],
    *,
    blocks: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compares the routing of perturbed images with that of the images as they are.

    Tokens are compared at the same position of the grid. Differences are Euclidean norms
    over an image, the range of pixel values being 1.

    Args:
      run: The opened run, on one process.
      split: Name of a split with one view.
      levels: Sizes by kind of perturbation, see `KINDS` and `default_levels`.
      blocks: Blocks to compare; all that have experts by default.
      seed: Seed of random perturbations.

    Returns:
      A row for each kind, level and block, and for all these blocks together:
      `perturbation`, `level`, `block`; `changed`, the share of tokens whose set of experts
      is another; `changed_first`, whose first expert is; and, the same for all blocks,
      `accuracy`; `distance`, mean difference of the images; `logit_distance`, mean
      difference of the logits; `jump`, mean of their quotient (0 for an unchanged image).

    Raises:
      ConfigError: If there is no such split, block or kind, or the split has two views.
    """
    split, blocks = run.choose_split(split, two_views=False), run.choose_blocks(blocks)
    if jax.process_count() > 1:
        raise ConfigError("processes", jax.process_count(), "robustness is measured by one process")
    for kind in levels:
        default_levels(kind)
    compare = jax.jit(_make_comparison(run, blocks))
    sums: dict[tuple[str, float], dict[str, float]] = {}
    with jax.set_mesh(run.mesh):
        perturb = {kind: _perturbation(run, kind, seed) for kind in levels}
        for index, batch in enumerate(run.batches(split)):
            for kind, sizes in levels.items():
                for level in sizes:
                    perturbed = perturb[kind](batch, float(level), index)
                    found = jax.device_get(compare(run.params, batch, perturbed))
                    total = sums.setdefault((kind, float(level)), dict.fromkeys(found, 0.0))
                    for name, value in found.items():
                        total[name] += float(value)
    return pd.DataFrame(
        row for (kind, level), total in sums.items() for row in _rows(kind, level, total, blocks)
    )


def _perturbation(run: OpenedRun, kind: str, seed: int):
    """Returns the function (batch, level, batch number) -> images."""
    if kind in ATTACKS:
        attack = jax.jit(make_attack(run.model, run.config.loss.to_dict(), ATTACKS[kind]))
        return lambda batch, level, _: attack(run.params, batch["image"], batch["labels"], level)
    perturbation = PERTURBATIONS[kind]
    apply = perturbation.apply if perturbation.on_host else jax.jit(perturbation.apply)

    def perturb(batch, level, index):
        images = batch["image"]
        changed = apply(np.asarray(images) if perturbation.on_host else images, level, seed + index)
        return jax.device_put(changed, images.sharding)

    return perturb


def _make_comparison(run: OpenedRun, blocks: Sequence[str]):
    route = make_routing_step(run.model)

    def compare(params, batch, perturbed):
        images, mask = batch["image"], batch["mask"]
        (logits, before), (moved, after) = route(params, images), route(params, perturbed)
        distance, logit_distance = _norm(perturbed - images) / 2, _norm(moved - logits)
        jump = jnp.where(distance > 0, logit_distance / jnp.maximum(distance, 1e-9), 0)

        def total(values):  # of (N,) or (N, T)
            values = values.reshape(len(mask), -1)
            return jnp.sum(jnp.where(mask[:, None], values, 0), dtype=jnp.float32)

        sums = {
            "images": total(jnp.ones(len(mask))),
            "accuracy": total(moved.argmax(-1) == batch["labels"].argmax(-1)),
            "distance": total(distance),
            "logit_distance": total(logit_distance),
            "jump": total(jump),
        }
        for block in blocks:
            a, b = before[block].experts, after[block].experts
            same = jnp.all(jnp.sort(a, axis=-1) == jnp.sort(b, axis=-1), axis=-1)
            sums[f"{block}/changed"] = total(~same)
            sums[f"{block}/changed_first"] = total(a[..., 0] != b[..., 0])
            sums[f"{block}/tokens"] = total(jnp.ones(same.shape))
        return sums

    return compare


def _rows(
    kind: str, level: float, total: Mapping[str, float], blocks: Sequence[str]
) -> Iterator[dict[str, float | str]]:
    whole = ("accuracy", "distance", "logit_distance", "jump")
    means = {name: total[name] / total["images"] for name in whole}
    for block, members in [*((b, [b]) for b in blocks), (ALL_BLOCKS, blocks)]:
        tokens = sum(total[f"{b}/tokens"] for b in members)
        shares = {
            name: sum(total[f"{b}/{name}"] for b in members) / tokens
            for name in ("changed", "changed_first")
        }
        yield {"perturbation": kind, "level": level, "block": block, **shares, **means}


def _norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x.reshape(len(x), -1).astype(jnp.float32), axis=-1)
