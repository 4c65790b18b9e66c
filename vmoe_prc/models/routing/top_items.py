"""Experts choose tokens (Expert Choice, arXiv 2202.09368)."""

import flax.linen as nn
import jax

from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions, top_items_per_expert
from vmoe_prc.models.routing.router import NoisyRouter, RouterOptions


@ROUTERS.register(options=RouterOptions)
class NoisyTopItemsPerExpertRouter(NoisyRouter):
    """Each expert takes the C tokens of its largest gates."""

    experts_choose = True

    @nn.nowrap
    def make_plan(
        self, gates: jax.Array, mask: jax.Array | None, method: str, options: DispatcherOptions
    ) -> Dispatcher:
        """Plans the dispatch of the top tokens of each expert."""
        return top_items_per_expert(gates, method, options, mask)
