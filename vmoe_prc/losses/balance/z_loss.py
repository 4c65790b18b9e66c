"""The router z-loss of ST-MoE."""

import dataclasses

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.options import BalanceOptions
from vmoe_prc.models.routing import Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZLossOptions(BalanceOptions):
    """Options of `z_loss`."""

    z_loss_weight: float = option(
        0.0, "Weight of ST-MoE's router z-loss, which keeps logits small.", minimum=0.0
    )


def z_loss(logits: Float[Array, "G S E"]) -> Float[Array, " G"]:
    """Mean over tokens of the squared log-sum-exp of the logits (arXiv 2202.08906, eq. 5).

    Args:
      logits: (G, S, E) noise-free logits.
    """
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2, axis=1)


@BALANCE_LOSSES.register("z_loss", options=ZLossOptions)
def _z_loss(routing: Routing, options: ZLossOptions) -> Array:
    del options
    return z_loss(routing.logits)
