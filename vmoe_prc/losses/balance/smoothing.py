"""The loss that keeps the soft edge of a choice narrow (SmoothSMoE, arXiv 2606.19036)."""

import dataclasses

import jax
import jax.numpy as jnp

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.options import BalanceOptions
from vmoe_prc.models.routing import Routing
from vmoe_prc.models.routing.smooth import MEAN_EXTRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothingOptions(BalanceOptions):
    """Options of `smoothing_loss`."""

    smoothing_loss_weight: float = option(
        1.0,
        "Weight of the loss of the width of a soft edge; only SmoothTopExpertsRouter has one.",
        minimum=0.0,
    )


@BALANCE_LOSSES.register("smoothing_loss", options=SmoothingOptions)
def smoothing_loss(routing: Routing, options: SmoothingOptions) -> jax.Array | None:
    """The width times the excess of used experts, (1,); None for routers without an edge.

    With n the mean number of experts that a token uses, the loss is width * (n - (k + 1/2)). Its
    gradient moves the width only: down where n is above k + 1/2, up where it is below. It may be
    negative.
    """
    del options
    if routing.edge is None:
        return None
    target = routing.edge.num_selected_experts + MEAN_EXTRA
    excess = jnp.mean(routing.edge.num_active) - target
    return (routing.edge.width * jax.lax.stop_gradient(excess))[None]
