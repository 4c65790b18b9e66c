"""A router of your own: tokens keep further experts only if their gates are large enough."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter, TopExpertsOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdOptions(TopExpertsOptions):
    """Options of `ThresholdRouter`."""

    threshold: float = option(
        0.1, "Smallest gate of a choice after the first.", minimum=0, maximum=1
    )


@ROUTERS.register(options=ThresholdOptions)
class ThresholdRouter(NoisyTopExpertsPerItemRouter):
    """Each token goes to its best expert, and to others whose gates reach the threshold."""

    threshold: float = ThresholdOptions.threshold

    @nn.nowrap
    def make_plan(self, gates: jax.Array, *arguments, **options) -> Dispatcher:
        """Plans as top-K routing does, then drops choices with small gates."""
        plan = super().make_plan(gates, *arguments, **options)
        first = jnp.arange(plan.weights.shape[-1]) == 0
        wanted = first | (plan.weights >= self.threshold)
        # A choice in a slot beyond the capacity is dropped: it moves no data.
        return plan.replace(slots=jnp.where(wanted, plan.slots, plan.capacity))
