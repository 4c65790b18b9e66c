"""Balanced assignment in training by Sinkhorn's iterations (S-BASE)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions, top_experts_per_item
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter, TopExpertsOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkhornOptions(TopExpertsOptions):
    """Options of `SinkhornRouter`."""

    sinkhorn_iterations: int = option(
        20, "Scalings of tokens and experts in a step of training.", minimum=1, maximum=1_000
    )
    noise_std: float = option(
        0.0,
        "Standard deviation of the noise of the logits in training, in units of 1 / experts.",
        minimum=0.0,
    )


@ROUTERS.register(options=SinkhornOptions)
class SinkhornRouter(NoisyTopExpertsPerItemRouter):
    """Chooses by a balanced plan in training, and by the gates in evaluation.

    BASE (arXiv 2103.16716) assigns tokens to experts equally in training and greedily in
    evaluation; S-BASE (Clark et al., arXiv 2202.01169) replaces the assignment by the largest
    entries of the entropic transport plan, which Sinkhorn's iterations find. The gates of the
    chosen experts weigh the outputs, and only they have gradients. The plan
    balances each routing group, here as configured, in the papers the batch of a device. More than
    one expert per token, and the number of iterations, are ours (theirs run to convergence).
    """

    sinkhorn_iterations: int = SinkhornOptions.sinkhorn_iterations
    noise_std: float = SinkhornOptions.noise_std

    @nn.nowrap
    def make_plan(
        self, gates: jax.Array, mask: jax.Array | None, method: str, options: DispatcherOptions
    ) -> Dispatcher:
        """Plans the dispatch of the groups of a device."""
        scores = None
        if not self.deterministic:
            scores = balanced_scores(jnp.log(gates), self.sinkhorn_iterations)
        k = self.num_selected_experts
        return self.normalized(top_experts_per_item(gates, k, method, options, mask, scores))


def balanced_scores(logits: Float[Array, "G S E"], iterations: int) -> Float[Array, "G S E"]:
    """Returns the logarithm of the plan of sums 1 over experts, and S / E over tokens.

    Args:
      logits: (G, S, E); a constant added to all logits of a token changes nothing.
      iterations: Scalings of both sides; the sums over tokens are exact after the last.

    Returns:
      (G, S, E) without gradient.
    """
    per_expert = jnp.log(logits.shape[1] / logits.shape[2])

    def scale(_, x):
        x -= jax.nn.logsumexp(x, axis=2, keepdims=True)
        return x - jax.nn.logsumexp(x, axis=1, keepdims=True) + per_expert

    return jax.lax.fori_loop(0, iterations, scale, jax.lax.stop_gradient(logits))
