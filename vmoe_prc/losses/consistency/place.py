"""Consistency by place: losses to which routing whole images is worth nothing.

PRC is minimal where every image is sent to one expert, regardless of what its patches show. These
losses subtract the part that remains when the matched patches are paired at random within their
image.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.losses.consistency.options import ConsistencyOptions, LossAndTerms
from vmoe_prc.losses.consistency.pairs import matched_gates

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacePrcOptions(ConsistencyOptions):
    """Options of `place_prc`."""

    label: ClassVar[str] = "place-PRC"

    diagonal_weight: float = option(
        0.03, "Weight of the diagonal term, which rewards agreement by place.", minimum=0.0
    )
    off_diagonal_weight: float = option(0.05, "Weight of the off-diagonal term.", minimum=0.0)
    image_weight: float = option(
        1.0,
        "Part of an image's mean gates that is taken out; 0 gives the matrix of PRC.",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class IicOptions(ConsistencyOptions):
    """Options of `iic`."""

    label: ClassVar[str] = "IIC"

    weight: float = option(0.03, "Weight of the mutual information of matched gates.", minimum=0.0)
    within_images: bool = option(
        True, "Whether the information is that within images, so that whole-image routing has none."
    )
    balance: float = option(
        0.5, "Weight of the entropy of the mean gates, with `within_images`.", minimum=0.0
    )


def place_prc_loss(
    gates: Float[Array, "B 2 T E"],
    pairs: Int[Array, "B X 2"],
    diagonal_weight: float = PlacePrcOptions.diagonal_weight,
    off_diagonal_weight: float = PlacePrcOptions.off_diagonal_weight,
    image_weight: float = PlacePrcOptions.image_weight,
) -> Float[Array, ""]:
    """PRC over the covariance of gates within images.

    With a and b the gates of the two patches of each of the n matched pairs, n_j pairs in image
    j, and A_j and B_j the means of a and b over them,

        S = (E / n) * sum_j (sum_x a b^T - image_weight * n_j A_j B_j^T),

    which is 0 for a router that sends whole images to experts. The loss is

        -diagonal_weight * mean_e S_ee + off_diagonal_weight * mean_{e != f} S_ef^2.

    Args:
      gates: (B, 2, T, E) noise-free gates.
      pairs: (B, X, 2) token pairs, (-1, -1) without a match.
      diagonal_weight: Weight of the diagonal term, which has no lower bound but -1.
      off_diagonal_weight: Weight of the off-diagonal term.
      image_weight: Part of the mean of an image that is taken out; 0 gives the S of PRC.

    Returns:
      A scalar; without any matched pair 0, with zero gradient.

    Raises:
      ValueError: If the shapes do not fit.
    """
    a, b, matched = matched_gates(gates, pairs)
    num_experts = gates.shape[-1]
    s = num_experts * _covariance(a, b, matched, image_weight)
    off_diagonal = jnp.where(jnp.eye(num_experts, dtype=bool), 0, s)
    diagonal_term = jnp.mean(jnp.diagonal(s))
    off_diagonal_term = jnp.sum(off_diagonal**2) / max(num_experts * (num_experts - 1), 1)
    return off_diagonal_weight * off_diagonal_term - diagonal_weight * diagonal_term


def iic_loss(
    gates: Float[Array, "B 2 T E"],
    pairs: Int[Array, "B X 2"],
    weight: float = IicOptions.weight,
    within_images: bool = IicOptions.within_images,
    balance: float = IicOptions.balance,
) -> Float[Array, ""]:
    """Minus the mutual information of matched gates (IIC, Ji et al. 2019, arXiv 1807.06653).

    With P the mean of (a b^T + b a^T) / 2 over the matched pairs and p its marginal, the
    information is sum P ln(P / p p^T), in nats.

    Args:
      gates: (B, 2, T, E) noise-free gates.
      pairs: (B, X, 2) token pairs, (-1, -1) without a match.
      weight: Weight of the loss.
      within_images: Whether P is formed in each image, whose information is averaged with its
        number of pairs as weight; a whole-image router then has no information at all. The
        entropy of the mean marginal, times `balance`, is added, which keeps experts in use.
      balance: Weight of that entropy, in nats.

    Returns:
      A scalar; without any matched pair 0, with zero gradient.

    Raises:
      ValueError: If the shapes do not fit.
    """
    a, b, matched = matched_gates(gates, pairs)
    count = jnp.sum(matched, axis=1).astype(a.dtype)  # (B,)
    share = count / jnp.maximum(jnp.sum(count), 1)
    joint = jnp.einsum("bxe,bxf->bef", a, b, precision=HIGHEST)
    joint = (joint + jnp.swapaxes(joint, 1, 2)) / 2
    if not within_images:
        total = jnp.sum(joint, axis=0) / jnp.maximum(jnp.sum(count), 1)
        return -weight * _information(total)
    joint = joint / jnp.maximum(count, 1)[:, None, None]
    marginal = jnp.einsum("b,bef->e", share, joint)
    entropy = -jnp.sum(_xlogy(marginal, marginal))
    return -weight * (jnp.sum(share * jax.vmap(_information)(joint)) + balance * entropy)


@CONSISTENCY_LOSSES.register("place_prc", options=PlacePrcOptions)
def _place_prc(gates: Array, pairs: Array, options: PlacePrcOptions) -> LossAndTerms:
    weights = (options.diagonal_weight, options.off_diagonal_weight, options.image_weight)
    return place_prc_loss(gates, pairs, *weights), {}


@CONSISTENCY_LOSSES.register("iic", options=IicOptions)
def _iic(gates: Array, pairs: Array, options: IicOptions) -> LossAndTerms:
    return iic_loss(gates, pairs, options.weight, options.within_images, options.balance), {}


def _covariance(
    a: Float[Array, "B X E"],
    b: Float[Array, "B X E"],
    matched: Bool[Array, "B X"],
    image_weight: float,
) -> Float[Array, "E E"]:
    """(1 / n) sum_j (sum_x a b^T - w n_j A_j B_j^T); a and b are 0 where not matched."""
    count = jnp.sum(matched, axis=1).astype(a.dtype)
    products = jnp.einsum("bxe,bxf->ef", a, b, precision=HIGHEST)
    sums = [jnp.sum(x, axis=1) for x in (a, b)]  # n_j A_j and n_j B_j, (B, E)
    means = jnp.einsum(
        "be,bf->ef", sums[0] / jnp.maximum(count, 1)[:, None], sums[1], precision=HIGHEST
    )
    return (products - image_weight * means) / jnp.maximum(jnp.sum(count), 1)


def _information(joint: Float[Array, "E E"]) -> Float[Array, ""]:
    """Mutual information in nats of a symmetric joint distribution, 0 for one of zeros."""
    marginal = jnp.sum(joint, axis=0)
    return jnp.sum(_xlogy(joint, joint)) - 2 * jnp.sum(_xlogy(marginal, marginal))


def _xlogy(x: Array, y: Array) -> Array:
    # The inner where keeps the gradient finite where a gate underflows to 0.
    return jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, y, 1)), 0)
