"""Tokens choose experts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions, top_experts_per_item
from vmoe_prc.models.routing.router import NoisyRouter, RouterOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopExpertsOptions(RouterOptions):
    """Options of `NoisyTopExpertsPerItemRouter`."""

    num_selected_experts: int = option(1, "Experts that each token chooses, K.", minimum=1)
    normalize_gates: bool = option(
        False,
        "Whether the gates of a token's K experts are scaled to sum to 1; in V-MoE they are not.",
    )


@ROUTERS.register(options=TopExpertsOptions)
class NoisyTopExpertsPerItemRouter(NoisyRouter):
    """Each token goes to the K experts of its largest gates (arXiv 2106.05974)."""

    num_selected_experts: int = TopExpertsOptions.num_selected_experts
    normalize_gates: bool = TopExpertsOptions.normalize_gates

    @nn.nowrap
    def make_plan(
        self, gates: jax.Array, mask: jax.Array | None, method: str, options: DispatcherOptions
    ) -> Dispatcher:
        """Plans the dispatch of tokens to their top experts."""
        k = self.num_selected_experts
        return self.normalized(top_experts_per_item(gates, k, method, options, mask))

    @nn.nowrap
    def normalized(self, plan: Dispatcher) -> Dispatcher:
        """Scales the weights of each token's choices to sum to 1, if that is asked for."""
        if not self.normalize_gates:
            return plan
        return dataclasses.replace(
            plan, weights=plan.weights / jnp.sum(plan.weights, -1, keepdims=True)
        )
