"""Tokens route like the tokens that they resemble (arXiv 2505.00792)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter, TopExpertsOptions

NORM_EPSILON = 1e-6
# Smallest gate whose logarithm is taken.
SMALLEST_GATE = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityOptions(TopExpertsOptions):
    """Options of `SimilarityRouter`."""

    temperature: float = option(
        0.2, "Difference of cosines that changes the share of a token by the factor e.", above=0.0
    )


@ROUTERS.register(options=SimilarityOptions)
class SimilarityRouter(NoisyTopExpertsPerItemRouter):
    """Gates are averages over the tokens of the image, by their similarity.

    With r the softmax of the linear logits of each token and
    A = softmax over tokens of cos(x_i, x_j) / temperature, the gates are A r. After
    Similarity-Aware MoE (Nguyen et al., arXiv 2505.00792), of which we read the abstract: it
    says that the choice of a token takes the choices of similar tokens into account; cosines, the
    temperature, the mean of the gates rather than the logits, and the image as the set of tokens
    are inferred.
    """

    temperature: float = SimilarityOptions.temperature

    @nn.nowrap
    def score(self, inputs: Float[Array, "G S D"]) -> tuple[Array, Array | None, float]:
        """Returns logits, noisy logits or None without noise, and the scale of the noise."""
        num_groups, group_size, size = inputs.shape
        own = jax.nn.softmax(self.linear_logits(inputs))
        tokens = inputs.reshape(-1, self.tokens_per_image or group_size, size).astype(jnp.float32)
        gates = token_similarity(tokens, self.temperature) @ own.reshape(*tokens.shape[:2], -1)
        gates = gates.reshape(num_groups, group_size, -1)
        return self.with_noise(jnp.log(jnp.maximum(gates, SMALLEST_GATE)))


def token_similarity(tokens: Float[Array, "N T D"], temperature: float) -> Float[Array, "N T T"]:
    """Returns the weights of all tokens of an image in the mean of each, with sums of 1."""
    squares = jnp.sum(tokens**2, axis=-1, keepdims=True)
    unit = tokens * jax.lax.rsqrt(squares + NORM_EPSILON)
    highest = jax.lax.Precision.HIGHEST
    cosines = jnp.einsum("ntd,nsd->nts", unit, unit, precision=highest)
    return jax.nn.softmax(cosines / temperature, axis=-1)
