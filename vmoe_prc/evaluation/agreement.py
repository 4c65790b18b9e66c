"""Do the two views of an image choose the same experts where they show the same place?"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.evaluation.bootstrap import Interval, ratio_intervals

METRICS = ("top1", "top2", "top2_unordered", "overlap")
# Beside the names of blocks: all of them together.
ALL_BLOCKS = "all"


def pairs_agree(first: Int[Array, "2 T"], pairs: Int[Array, "X 2"]) -> Bool[Array, " X"]:
    """Returns for each pair (token of view 0, token of view 1) whether first experts are equal.

    Args:
      first: (2, T) first expert of each token of the two views of an image.
      pairs: (X, 2) matched tokens, without (-1, -1).
    """
    return first[0, pairs[:, 0]] == first[1, pairs[:, 1]]


def agreement_per_image(
    experts: Int[Array, "B 2 T K"], pairs: Int[Array, "B X 2"]
) -> dict[str, Float[Array, " B"]]:
    """Sums the agreement of the matched pairs of each image.

    Divide the sum over images of a metric by that of `num_pairs` for its mean.

    Args:
      experts: (B, 2, T, K) experts of each token, best first.
      pairs: (B, X, 2) matched tokens of the views, without the class pair; (-1, -1) marks
        no match.

    Returns:
      Sums over the pairs of an image, each (B,) float32: `num_pairs`; `top1`, pairs with
      the same first expert; `overlap`, the shared part of the two sets of K. For K > 1,
      `top2`, pairs with the same first and second expert, and `top2_unordered`, pairs
      with the same set of two.
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
    return {
        name: jnp.sum(jnp.where(matched, values, 0), axis=1, dtype=jnp.float32)
        for name, values in per_pair.items()
    }


def agreement_intervals(
    per_image: Mapping[str, Mapping[str, Float[np.ndarray, " N"]]],
) -> dict[str, dict[str, Interval]]:
    """Estimates the agreement over a split, with 95% intervals that resample its images.

    Args:
      per_image: By block, what `agreement_per_image` gives for the N images.

    Returns:
      Shares in [0, 1] by block and metric; the block 'all' has the pairs of all blocks.
    """
    totals = {
        name: np.sum([block[name] for block in per_image.values()], axis=0)
        for name in next(iter(per_image.values()), {})
    }
    results = {}
    for block, sums in {**per_image, ALL_BLOCKS: totals}.items():
        names = [name for name in METRICS if name in sums]
        numerators = np.stack([sums[name] for name in names], axis=1)
        intervals = ratio_intervals(numerators, sums["num_pairs"])
        results[block] = dict(zip(names, intervals, strict=True))
    return results
