"""Changes of routing and accuracy as images are perturbed or attacked."""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.attacks import (
    EPSILONS,
    PGD_STEPS,
    VMOE_STEPS,
    Target,
    make_attack,
)
from vmoe_prc.analysis.choices import Choices, make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.perturbations import PERTURBATIONS, SMALLEST_CORRUPTED
from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.evaluation.agreement import ALL_BLOCKS
from vmoe_prc.evaluation.bootstrap import percentile_interval, resampled_totals
from vmoe_prc.evaluation.decomposition import average, decompose, decomposition_sums
from vmoe_prc.runtime.mesh import batch_sharding, own_rows, replicated
from vmoe_prc.steps.accuracy import is_correct, is_labelled

# Steps and target of each attack.
ATTACKS: dict[str, tuple[int, Target]] = {
    "fgsm": (1, "model"),
    "pgd": (PGD_STEPS, "model"),
    "pgd_vmoe": (VMOE_STEPS, "model"),
    "pgd_router": (PGD_STEPS, "router"),
    "pgd_experts": (PGD_STEPS, "experts"),
}
KINDS = (*PERTURBATIONS, *ATTACKS)
UNITS = {
    **{name: kind.unit for name, kind in PERTURBATIONS.items()},
    **dict.fromkeys(ATTACKS, "epsilon, 1/255 of the pixel range"),
}
# Keys of `decomposition_sums`.
SUMS = ("pairs", "observed", "within", "load_a", "load_b")
# An image that changes by less (Euclidean norm, pixel range 1) counts as unchanged.
ROUNDING = 1e-4


class _Sums(NamedTuple):
    """Sums over images by name: of whole images, and of each block."""

    whole: Mapping[str, Any]
    blocks: Mapping[str, Mapping[str, Any]]


# Sums of `decomposition_sums` of each image, by block and name.
_PairSums = Mapping[str, Mapping[str, Any]]


def default_levels(kind: str) -> tuple[float, ...]:
    """Returns the default levels of a perturbation or attack.

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
    """Compares the routing of perturbed images with the routing of the original images.

    Routing, accuracy and jumps are measured on the dropless model: experts have room for every
    token, so that routing does not depend on the other images of the batch. The effect
    of dropped tokens, with the capacity that the run is evaluated with, has its own columns.
    Tokens are compared at the same position of the grid. Distances are Euclidean norms over
    an image, with a pixel range of 1.

    Args:
      run: The opened run.
      split: Name of a split with one view.
      levels: Levels by kind of perturbation, see `KINDS` and `default_levels`.
      blocks: Blocks to compare; all blocks with experts by default.
      seed: Seed of random perturbations.

    Returns:
      One row per kind, level and block, and for all these blocks together: `perturbation`,
      `level`, `block`; `changed`, the share of tokens whose set of selected experts changes;
      `changed_first`, the share whose first expert changes; `kappa` and
      `kappa_place`, agreement of the first experts of patches before and after, see
      `evaluation.decomposition`, with 95% intervals over images (`kappa_low` and so on); and,
      the same in all blocks, `accuracy` of the images with labels (NaN without any);
      `distance`, mean distance of the images; `logit_distance`, mean distance of
      the logits; `jump`, mean of their quotient (0 for an unchanged image);
      `accuracy_with_drops`, `jump_with_drops`, and `dropped`, the share of dropped choices,
      with the run's own capacity.

    Raises:
      ConfigError: If there is no such split, block or kind, or the split has two views.
    """
    split, blocks = run.choose_split(split, two_views=False), run.choose_blocks(blocks)
    _check_kinds(levels, run.batch_spec(split)["image"].shape)
    routes = [jax.jit(make_routing_step(model.model)) for model in (run.dropless(), run)]
    scale = run.value_range(split).size
    compare = functools.partial(_compare, blocks, run, scale)
    compare = jax.jit(compare, out_shardings=replicated(run.mesh))
    sums: dict[tuple[str, float], _Sums] = {}
    # Agreement is a function of the sums of each image, which are resampled.
    parts: dict[tuple[str, float], list[_PairSums]] = {}
    with jax.set_mesh(run.mesh):
        perturb = {kind: make_perturbation(run.dropless(), split, kind, seed) for kind in levels}
        for index, batch in enumerate(run.batches(split)):
            before = [route(run.params, batch["image"]) for route in routes]
            for kind, sizes in levels.items():
                for level in map(float, sizes):
                    perturbed = perturb[kind](batch, level, index)
                    after = [route(run.params, perturbed) for route in routes]
                    compared = compare(batch, before, perturbed, after)
                    found, of_images, mask = jax.device_get(compared)
                    found = jax.tree.map(np.float64, found)
                    total = sums.get((kind, level))
                    sums[kind, level] = (
                        found if total is None else jax.tree.map(np.add, total, found)
                    )
                    of_images = jax.tree.map(lambda x, mask=mask: x[mask], of_images)
                    parts.setdefault((kind, level), []).append(of_images)
    return pd.DataFrame(
        row
        for (kind, level), total in sums.items()
        for row in _rows(kind, level, total, parts[kind, level], blocks)
    )


def make_perturbation(run: OpenedRun, split: str, kind: str, seed: int) -> Callable[..., jax.Array]:
    """Builds the function (batch, level, index of the batch) -> images on the devices.

    Args:
      run: The opened run, whose model an attack is on.
      split: The split of the batches, whose value range the images have.
      kind: One of `KINDS`.
      seed: Seed of a random perturbation; each batch has its own random numbers.
    """
    value_range = run.value_range(split)
    if kind in ATTACKS:
        steps, target = ATTACKS[kind]
        loss = run.config.loss.to_dict()
        attack = jax.jit(
            make_attack(run.model, loss, steps, value_range, target, projected=kind != "pgd_vmoe")
        )
        return lambda batch, level, _: attack(run.params, batch["image"], batch["labels"], level)
    perturbation = PERTURBATIONS[kind]

    def apply(images, level, seed):
        unit = value_range.to_unit(images)
        # Adding the change keeps unperturbed images exactly as they are.
        return images + value_range.size * (perturbation.apply(unit, level, seed) - unit)

    def perturb_own_rows(batch, level, index):
        images = batch["image"]
        rows, own = own_rows(images)
        # Each image has its own seed: results do not depend on the number of processes.
        changed = apply(own, level, seed + index * len(images) + rows)
        return jax.make_array_from_process_local_data(images.sharding, changed, images.shape)

    if perturbation.on_host:
        return perturb_own_rows
    jitted = jax.jit(apply, out_shardings=batch_sharding(run.mesh))
    return lambda batch, level, index: jitted(batch["image"], level, seed + index)


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


def _compare(
    blocks, run, scale, batch, before, perturbed, after
) -> tuple[_Sums, _PairSums, jax.Array]:
    """Sums differences over the images that count, and over the patches of each image.

    Args:
      blocks: Blocks to compare.
      run: The run.
      scale: Length of the value range of the images.
      batch: The original images, with `labels` and `mask`.
      before: Results of the routing steps on them: dropless, and with the run's capacity.
      perturbed: The perturbed images.
      after: Results of the routing steps on these.

    Returns:
      The sums, the `decomposition_sums` of each image, and the mask.
    """
    images, mask = batch["image"], batch["mask"]
    distance = _norm(perturbed - images) / scale
    distance = jnp.where(distance > ROUNDING, distance, 0)

    def total(values):  # of (N,) or (N, T) or (N, T, K)
        values = values.reshape(len(mask), -1)
        return jnp.sum(jnp.where(mask[:, None], values, 0), dtype=jnp.float32)

    sums = {
        "images": total(jnp.ones(len(mask))),
        "labelled": total(is_labelled(batch["labels"])),
        "distance": total(distance),
    }
    for suffix, (logits, _), (moved, _) in zip(("", "_with_drops"), before, after, strict=True):
        logit_distance = _norm(moved - logits)
        jump = jnp.where(distance > 0, logit_distance / jnp.maximum(distance, ROUNDING), 0)
        sums |= {
            f"accuracy{suffix}": total(is_correct(moved, batch["labels"])),
            f"logit_distance{suffix}": total(logit_distance),
            f"jump{suffix}": total(jump),
        }
    of_blocks, of_images = {}, {}
    for block in blocks:
        a, b, with_drops = before[0][1][block], after[0][1][block], after[1][1][block]
        changed = jnp.any(_selection(a) != _selection(b), axis=-1)
        of_blocks[block] = {
            "changed": total(changed),
            "changed_first": total(a.experts[..., 0] != b.experts[..., 0]),
            "tokens": total(jnp.ones(a.experts.shape[:2])),
            "dropped": total(with_drops.selected & ~with_drops.kept),
            "choices": total(with_drops.selected),
        }
        patches = slice(int(run.class_token), None)
        clean, noisy = (x.experts[:, patches, :1] for x in (a, b))
        counted = jnp.broadcast_to(mask[:, None], clean.shape[:2])
        of_images[block] = decomposition_sums(clean, noisy, counted, run.num_experts)
    return _Sums(sums, of_blocks), of_images, mask


def _selection(choices: Choices) -> jax.Array:
    """Returns (N, T, K) selected experts in descending order, and then -1 for the others."""
    return jnp.sort(jnp.where(choices.selected, choices.experts, -1), axis=-1, descending=True)


def _rows(
    kind: str,
    level: float,
    total: _Sums,
    of_images: Sequence[_PairSums],
    blocks: Sequence[str],
) -> Iterator[dict[str, float | str]]:
    whole = ("distance", "logit_distance", "jump", "jump_with_drops")
    images, labelled = total.whole["images"], float(total.whole["labelled"]) or np.nan
    means = {name: float(total.whole[name] / images) for name in whole}
    means |= {n: float(total.whole[n]) / labelled for n in ("accuracy", "accuracy_with_drops")}

    def over(members, name, per):
        counted = sum(total.blocks[b][per] for b in members)
        return float(sum(total.blocks[b][name] for b in members) / counted)

    def agreement(block):  # over all images, and after that over resamples of them
        sums = {name: np.concatenate([part[block][name] for part in of_images]) for name in SUMS}
        return decompose(resampled_totals(sums))

    by_block = {block: agreement(block) for block in blocks}
    means["dropped"] = over(blocks, "dropped", "choices")
    for block, members in [*((b, [b]) for b in blocks), (ALL_BLOCKS, blocks)]:
        shares = {name: over(members, name, "tokens") for name in ("changed", "changed_first")}
        kappas = average([by_block[b] for b in members])
        for name in ("kappa", "kappa_place"):
            values = getattr(kappas, name)
            interval = percentile_interval(values[0], values[1:])
            shares |= {name: interval.value, f"{name}_low": interval.low}
            shares[f"{name}_high"] = interval.high
        yield {"perturbation": kind, "level": level, "block": block, **shares, **means}


def _norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x.reshape(len(x), -1).astype(jnp.float32), axis=-1)
