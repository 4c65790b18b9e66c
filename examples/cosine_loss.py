"""A consistency loss of your own: the gates of matched patches point in the same direction."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.losses.consistency.options import LossAndTerms, WeightedOptions
from vmoe_prc.losses.consistency.pairs import matched_gates


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineOptions(WeightedOptions):
    """Options of `cosine`."""

    label: ClassVar[str] = "Cosine"  # in tables and figures


@CONSISTENCY_LOSSES.register("cosine", options=CosineOptions)
def cosine(gates: jax.Array, pairs: jax.Array, options: CosineOptions) -> LossAndTerms:
    """One minus the cosine of the gates of matched patches, averaged over the pairs.

    Args:
      gates: (B, 2, T, E) float32, gates of the tokens of both views of an image.
      pairs: (B, X, 2) int32, matched tokens; (-1, -1) where there is no match.
      options: Options of the loss.

    Returns:
      The weighted loss, a scalar, and terms that are logged with it.
    """
    a, b, matched = matched_gates(gates, pairs)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosines = jnp.sum(a * b, axis=-1) / jnp.where(matched, norms, 1)
    mean = jnp.sum(jnp.where(matched, cosines, 0)) / jnp.maximum(jnp.sum(matched), 1)
    return options.weight * (1 - mean), {"cosine": mean}
