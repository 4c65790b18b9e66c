"""How routing and accuracy change as images are perturbed or attacked."""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.attacks import EPSILONS, PGD_STEPS, make_attack
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.perturbations import PERTURBATIONS, SMALLEST_CORRUPTED
from vmoe_prc.analysis.routing import Choices, make_routing_step
from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.evaluation.agreement import ALL_BLOCKS

ATTACKS = {"fgsm": 1, "pgd": PGD_STEPS}
KINDS = (*PERTURBATIONS, *ATTACKS)
UNITS = {
    **{name: kind.unit for name, kind in PERTURBATIONS.items()},
    **dict.fromkeys(ATTACKS, "epsilon, 1/255 of the pixel range"),
}
# A smaller change of an image, as a Euclidean norm with a pixel range of 1, is none.
ROUNDING = 1e-4


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
      `perturbation`, `level`, `block`; `changed`, the share of tokens whose set of selected
      experts is another; `changed_first`, whose first expert is; and, the same for all blocks,
      `accuracy`; `distance`, mean difference of the images; `logit_distance`, mean
      difference of the logits; `jump`, mean of their quotient (0 for an unchanged image).

    Raises:
      ConfigError: If there is no such split, block or kind, or the split has two views.
    """
    split, blocks = run.choose_split(split, two_views=False), run.choose_blocks(blocks)
    if jax.process_count() > 1:
        raise ConfigError("processes", jax.process_count(), "robustness is measured by one process")
    _check_kinds(levels, run.batch_spec(split)["image"].shape)
    route = jax.jit(make_routing_step(run.model))
    compare = jax.jit(functools.partial(_compare, blocks))
    sums: dict[tuple[str, float], dict[str, float]] = {}
    with jax.set_mesh(run.mesh):
        perturb = {kind: make_perturbation(run, kind, seed) for kind in levels}
        for index, batch in enumerate(run.batches(split)):
            before = route(run.params, batch["image"])
            for kind, sizes in levels.items():
                for level in map(float, sizes):
                    perturbed = perturb[kind](batch, level, index)
                    after = route(run.params, perturbed)
                    found = jax.device_get(compare(batch, before, perturbed, after))
                    total = sums.setdefault((kind, level), dict.fromkeys(found, 0.0))
                    for name, value in found.items():
                        total[name] += float(value)
    return pd.DataFrame(
        row for (kind, level), total in sums.items() for row in _rows(kind, level, total, blocks)
    )


def make_perturbation(run: OpenedRun, kind: str, seed: int) -> Callable[..., jax.Array]:
    """Builds the function (batch, level, index of the batch) -> images on the devices.

    Args:
      run: The opened run, whose model an attack is on.
      kind: One of `KINDS`.
      seed: Seed of a random perturbation; every batch gets another of its own.
    """
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


def _check_kinds(kinds: Iterable[str], image_shape: tuple[int, ...]) -> None:
    for kind in kinds:
        default_levels(kind)
        if not kind.startswith("imagenet_c/"):
            continue
        side = min(image_shape[1:3])
        if side < SMALLEST_CORRUPTED:
            least = f"needs images of at least {SMALLEST_CORRUPTED} pixels a side, not {side}"
            raise ConfigError("--perturbation", kind, least)
        if importlib.util.find_spec("imagecorruptions") is None:
            library = "needs a library: pip install --no-deps imagecorruptions-imaug"
            raise ConfigError("--perturbation", kind, library)


def _compare(blocks, batch, before, perturbed, after) -> dict[str, jax.Array]:
    """Sums what differs over the images that count; before and after are routing steps."""
    images, mask = batch["image"], batch["mask"]
    (logits, choices), (moved, moved_choices) = before, after
    distance, logit_distance = _norm(perturbed - images) / 2, _norm(moved - logits)
    distance = jnp.where(distance > ROUNDING, distance, 0)
    jump = jnp.where(distance > 0, logit_distance / jnp.maximum(distance, ROUNDING), 0)

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
        a, b = choices[block], moved_choices[block]
        changed = jnp.any(_selection(a) != _selection(b), axis=-1)
        sums[f"{block}/changed"] = total(changed)
        sums[f"{block}/changed_first"] = total(a.experts[..., 0] != b.experts[..., 0])
        sums[f"{block}/tokens"] = total(jnp.ones(a.experts.shape[:2]))
    return sums


def _selection(choices: Choices) -> jax.Array:
    """(N, T, K) selected experts in descending order, then -1 for each that is not."""
    return jnp.sort(jnp.where(choices.selected, choices.experts, -1), axis=-1, descending=True)


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
