"""Tokens choose experts."""

import dataclasses

import flax.linen as nn
import jax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions, top_experts_per_item
from vmoe_prc.models.routing.router import NoisyRouter, RouterOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopExpertsOptions(RouterOptions):
    """Options of `NoisyTopExpertsPerItemRouter`."""

    num_selected_experts: int = option(1, "Experts that each token chooses, K.", minimum=1)


@ROUTERS.register(options=TopExpertsOptions)
class NoisyTopExpertsPerItemRouter(NoisyRouter):
    """Each token goes to the K experts of its largest gates (arXiv 2106.05974)."""

    num_selected_experts: int = TopExpertsOptions.num_selected_experts

    @nn.nowrap
    def make_plan(
        self, gates: jax.Array, mask: jax.Array | None, method: str, options: DispatcherOptions
    ) -> Dispatcher:
        """Plans the dispatch of tokens to their top experts."""
        return top_experts_per_item(gates, self.num_selected_experts, method, options, mask)
