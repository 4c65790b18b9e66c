"""Agreement of the two views of an image on the experts of matched patches."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.evaluation.bootstrap import Interval, percentile_interval, resampled_totals
from vmoe_prc.evaluation.decomposition import (
    Decomposition,
    average,
    decompose,
    decomposition_sums,
)

METRICS = ("top1", "top2", "top2_unordered", "overlap")
# Names of the parts of the agreement of first choices (see `decomposition`); names for the sets
# of K, where K > 1, begin with "overlap_".
PARTS = Decomposition._fields
SETS = "overlap_"
# Sums over the pairs of each image: arrays, and under "first" and "sets" arrays by name.
PairTotals = dict[str, Any]
# Stands for all blocks together in the place of the name of a block.
ALL_BLOCKS = "all"


def pairs_agree(first: Int[Array, "2 T"], pairs: Int[Array, "X 2"]) -> Bool[Array, " X"]:
    """Returns for each pair (token of view 0, token of view 1) whether first experts are equal.

    Args:
      first: (2, T) first expert of each token of the two views of an image.
      pairs: (X, 2) matched tokens, without (-1, -1).
    """
    return first[0, pairs[:, 0]] == first[1, pairs[:, 1]]


def agreement_per_image(
    experts: Int[Array, "B 2 T K"], pairs: Int[Array, "B X 2"], num_experts: int
) -> PairTotals:
    """Sums the agreement of the matched pairs of each image.

    The mean of a metric is its sum over images divided by the sum of `num_pairs`.

    Args:
      experts: (B, 2, T, K) experts of each token, best first.
      pairs: (B, X, 2) matched tokens of the views, without the class pair; (-1, -1) marks
        no match.
      num_experts: E.

    Returns:
      Sums over the pairs of an image, each (B,) float32: `num_pairs`; `top1`, pairs with
      the same first expert; `overlap`, the shared part of the two sets of K. For K > 1,
      `top2`, pairs with the same first and second expert, and `top2_unordered`, pairs
      with the same set of two. And the sums of `decomposition_sums` by their names, under
      `first` for first choices and, for K > 1, under `sets` for the sets of K.
    """
    num_selected = experts.shape[-1]
    matched = pairs[..., 0] >= 0  # (B, X)
    a, b = (
        jnp.take_along_axis(experts[:, view], jnp.maximum(pairs[..., view], 0)[..., None], axis=1)
        for view in (0, 1)
    )  # (B, X, K)
    shared = jnp.sum(a[..., :, None] == b[..., None, :], axis=(-2, -1))
    per_pair = {
        "num_pairs": jnp.ones_like(matched),
        "top1": a[..., 0] == b[..., 0],
        "overlap": shared / num_selected,
    }
    if num_selected > 1:
        (a0, a1), (b0, b1) = (jnp.moveaxis(x[..., :2], -1, 0) for x in (a, b))
        straight, crossed = (a0 == b0) & (a1 == b1), (a0 == b1) & (a1 == b0)
        per_pair |= {"top2": straight, "top2_unordered": straight | crossed}
    sums: PairTotals = {
        name: jnp.sum(jnp.where(matched, values, 0), axis=1, dtype=jnp.float32)
        for name, values in per_pair.items()
    }
    choices = {"first": 1} | ({"sets": num_selected} if num_selected > 1 else {})
    for kind, k in choices.items():
        sums[kind] = decomposition_sums(a[..., :k], b[..., :k], matched, num_experts)
    return sums


def agreement_intervals(
    per_image: Mapping[str, PairTotals],
) -> dict[str, dict[str, Interval]]:
    """Estimates the agreement over a split, with 95% intervals that resample its images.

    All quantities of a block are functions of sums over images, which are resampled jointly.

    Args:
      per_image: Result of `agreement_per_image` for the N images, by block.

    Returns:
      Shares in [0, 1] by block and metric: `METRICS`, the `PARTS` of the agreement of first
      choices and, for K > 1, of sets (`overlap_chance` and so on). The block 'all' has the
      pairs of all blocks.
    """
    estimates = {block: _estimates(sums) for block, sums in per_image.items()}
    if estimates:
        estimates[ALL_BLOCKS] = _average(list(estimates.values()))
    return {
        block: {
            name: percentile_interval(values[0], values[1:]) for name, values in metrics.items()
        }
        for block, metrics in estimates.items()
    }


# Metrics and decompositions of a block over all images, and after that over each resample.
_Estimates = dict[str, Float[np.ndarray, " R"]]


def _estimates(sums: PairTotals) -> _Estimates:
    # All of them jointly: the resamples of every quantity are of the same images.
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(sums))
    total: PairTotals = traverse_util.unflatten_dict(resampled_totals(flat))
    with np.errstate(invalid="ignore"):
        found = {name: total[name] / total["num_pairs"] for name in METRICS if name in total}
    for choices, prefix in (("first", ""), ("sets", SETS)):
        if choices in total:
            parts = decompose(total[choices])._asdict()
            found |= {prefix + name: values for name, values in parts.items()}
    return found


def _average(blocks: list[_Estimates]) -> _Estimates:
    """Averages over blocks, which have the same pairs; kappas follow from the averages."""
    found = {name: np.mean([block[name] for block in blocks], axis=0) for name in blocks[0]}
    for prefix in ("", SETS):
        if prefix + PARTS[0] in found:
            parts = [Decomposition(*(block[prefix + n] for n in PARTS)) for block in blocks]
            found |= {prefix + n: v for n, v in average(parts)._asdict().items()}
    return found
