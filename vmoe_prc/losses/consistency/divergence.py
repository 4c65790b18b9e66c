"""Distances between the gates of matched patches, averaged over the pairs."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.losses.consistency.options import LossAndTerms, WeightedOptions
from vmoe_prc.losses.consistency.pairs import matched_gates

REDUCTIONS = ("mean", "times_pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2Options(WeightedOptions):
    """Options of `l2`."""

    label: ClassVar[str] = "L2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsdOptions(WeightedOptions):
    """Options of `jsd`."""

    label: ClassVar[str] = "JSD"

    reduction: str = option(
        "mean",
        "Mean over the pairs; or `times_pairs`, in which a pair counts as often as its image has "
        "pairs, as PRC's released program sums them.",
        choices=REDUCTIONS,
    )


def l2_consistency(gates: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"]) -> Float[Array, ""]:
    """Mean over matched pairs of sqrt(sum_e (a_e - b_e)^2 + 1e-9)."""
    a, b, matched = matched_gates(gates, pairs)
    return _mean(jnp.sqrt(jnp.sum((a - b) ** 2, axis=-1) + 1e-9), matched)


def jsd_consistency(
    gates: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"], reduction: str = "mean"
) -> Float[Array, ""]:
    """Mean over matched pairs of the Jensen-Shannon divergence, in nats: [0, ln 2].

    Args:
      gates: (B, 2, T, E) of the two views.
      pairs: (B, X, 2) matched tokens.
      reduction: 'mean', or 'times_pairs' as in PRC's released program, which sums a second time
        over the pairs of an image: each pair counts as often as its image has pairs.
    """
    a, b, matched = matched_gates(gates, pairs)
    middle = (a + b) / 2
    negentropy = [jnp.sum(_xlogx(p), axis=-1) for p in (a, b, middle)]
    divergence = (negentropy[0] + negentropy[1]) / 2 - negentropy[2]
    if reduction == "times_pairs":
        divergence *= jnp.sum(matched, axis=1, keepdims=True)
    return _mean(divergence, matched)


def _mean(values: Float[Array, "B X"], matched: Bool[Array, "B X"]) -> Float[Array, ""]:
    total = jnp.sum(jnp.where(matched, values, 0))
    return total / jnp.maximum(jnp.sum(matched), 1)


def _xlogx(p: Array) -> Array:
    # The inner where keeps the gradient finite where a gate underflows to 0.
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)


@CONSISTENCY_LOSSES.register("l2", options=L2Options)
def _l2(gates: Array, pairs: Array, options: L2Options) -> LossAndTerms:
    return options.weight * l2_consistency(gates, pairs), {}


@CONSISTENCY_LOSSES.register("jsd", options=JsdOptions)
def _jsd(gates: Array, pairs: Array, options: JsdOptions) -> LossAndTerms:
    return options.weight * jsd_consistency(gates, pairs, options.reduction), {}
