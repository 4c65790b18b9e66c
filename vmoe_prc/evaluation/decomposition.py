"""Agreement of two choices of experts, decomposed into chance, image and place.

Two choices are made for each of n tokens: in two views of an image, or for the clean and the
noisy image. With a and b the experts chosen for a token (K each, the first ones or the sets),
the observed agreement p_o is the mean of |a & b| / K. It has three parts:

    p_o = p_chance + (p_image - p_chance) + (p_o - p_image)
            chance          image               place

p_chance is the expected agreement if the tokens of all images are paired at random: what the
loads alone give. p_image is the expected agreement if the tokens are paired at random within
each image: a router that sends each whole image to one expert has p_o = p_image, and
`pairs='random'` trains for exactly this. Both are expectations over all permutations, computed
without sampling. kappa = (p_o - p_chance) / (1 - p_chance) (Cohen 1960) and
kappa_place = (p_o - p_image) / (1 - p_image) are 0 for chance and 1 for perfect agreement, and
unlike p_o do not grow as experts fall idle.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Bool, Float, Int

# In an image of one pair p_image = p_o: images with fewer pairs than this do not count.
MIN_PAIRS = 4


class Decomposition(NamedTuple):
    """Agreement and its parts, shares in [0, 1]; arrays over replicates of a bootstrap.

    Attributes:
      chance: p_chance.
      image: p_image - p_chance.
      place: p_o - p_image.
      kappa: Agreement corrected for chance, NaN where chance always agrees.
      kappa_place: Agreement corrected for pairing within images, NaN where p_image is 1.
    """

    chance: Float[np.ndarray, "..."]
    image: Float[np.ndarray, "..."]
    place: Float[np.ndarray, "..."]
    kappa: Float[np.ndarray, "..."]
    kappa_place: Float[np.ndarray, "..."]


def decomposition_sums(
    a: Int[Array, "B X K"], b: Int[Array, "B X K"], matched: Bool[Array, "B X"], num_experts: int
) -> dict[str, Float[Array, "B ..."]]:
    """Sums over the pairs of each image, from which `decompose` takes agreement apart.

    Args:
      a: (B, X, K) distinct experts chosen for X tokens.
      b: (B, X, K) experts chosen for their partners.
      matched: (B, X) which of them count.
      num_experts: E.

    Returns:
      Float32 sums, all 0 for images with fewer than `MIN_PAIRS` pairs, which add up over
      images: `pairs` (B,); `observed` (B,), sum of |a & b| / K; `within` (B,), its expectation
      if the pairs are permuted within the image; `load_a` and `load_b` (B, E), pairs whose
      choice has the expert.
    """
    count = jnp.sum(matched, axis=1, dtype=jnp.float32)  # (B,)
    counted = (matched & (count >= MIN_PAIRS)[:, None])[..., None]
    # (B, X, E), 1 for chosen experts.
    sets = [jax.nn.one_hot(x, num_experts).sum(axis=-2) * counted for x in (a, b)]
    load_a, load_b = (jnp.sum(x, axis=1) for x in sets)
    k = a.shape[-1]
    return {
        "pairs": jnp.sum(counted, axis=(1, 2), dtype=jnp.float32),
        "observed": jnp.sum(sets[0] * sets[1], axis=(1, 2)) / k,
        "within": jnp.sum(load_a * load_b, axis=1) / (k * jnp.maximum(count, 1)),
        "load_a": load_a,
        "load_b": load_b,
    }


def decompose(sums: Mapping[str, Float[np.ndarray, "..."]]) -> Decomposition:
    """Takes agreement apart.

    Args:
      sums: Sums over images of `decomposition_sums`: `pairs`, `observed`, `within` (...,),
        `load_a` and `load_b` (..., E), whose sum is K times the number of pairs.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = np.asarray(sums["pairs"], np.float64)
        observed, within = (np.asarray(sums[x], np.float64) / pairs for x in ("observed", "within"))
        shares = [np.asarray(sums[x], np.float64) / pairs[..., None] for x in ("load_a", "load_b")]
        chance = np.sum(shares[0] * shares[1], axis=-1) / np.sum(shares[0], axis=-1)
        return combine(observed, chance, within)


def combine(
    observed: Float[np.ndarray, "..."] | float,
    chance: Float[np.ndarray, "..."] | float,
    within: Float[np.ndarray, "..."] | float,
) -> Decomposition:
    """Makes a decomposition of p_o, p_chance and p_image."""
    observed, chance, within = (np.asarray(x, np.float64) for x in (observed, chance, within))
    return Decomposition(
        chance=chance,
        image=within - chance,
        place=observed - within,
        kappa=_corrected(observed, chance),
        kappa_place=_corrected(observed, within),
    )


def average(blocks: list[Decomposition]) -> Decomposition:
    """Decomposes the mean agreement of several blocks with the same pairs.

    Experts of different blocks are different, so chance is averaged over blocks, too.
    """
    chance, image, place = (np.mean([getattr(b, x) for b in blocks], axis=0) for x in _PARTS)
    return combine(chance + image + place, chance, chance + image)


_PARTS = ("chance", "image", "place")


def _corrected(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    # Rounding of float32 sums leaves less than this of 1 - p where a chance of 1 was meant.
    room = 1 - expected
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(room > 1e-6, (observed - expected) / room, np.nan)
