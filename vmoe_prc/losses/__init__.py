"""Losses: classification, balance of the experts, consistency of the router."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Int
from vmoe_prc.config.metric_names import under
from vmoe_prc.losses.balance import BalanceLosses
from vmoe_prc.losses.classification import class_probabilities, classification_loss
from vmoe_prc.losses.consistency import ConsistencyLoss
from vmoe_prc.models.routing import Routing

__all__ = [
    "BalanceLosses",
    "ConsistencyLoss",
    "auxiliary_loss",
    "class_probabilities",
    "classification_loss",
]


def auxiliary_loss(
    routings: Mapping[str, Routing],
    *,
    balance: Mapping[str, Any] | BalanceLosses | None = None,
    pairs: Int[Array, "B X 2"] | None = None,
    consistency: Mapping[str, Any] | ConsistencyLoss | None = None,
    progress: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums the losses on the routers' decisions: mean over groups, sum over MoE blocks.

    A loss of weight 0 is reported but does not reach the total, which stays finite even
    where that loss is not.

    Args:
      routings: Routing record of each MoE block.
      balance: Options of the balance losses, such as `importance_loss_weight`; a loss has
        weight 0 if it is not named.
      pairs: (B, X, 2) matched tokens, when the images are B pairs of adjacent views.
      consistency: `name` of the consistency loss, such as 'prc', and its options; None for
        no such loss.
      progress: Part of the training that is done, from 0 to 1; losses that are for its first
        part are 0 in the total afterwards. None if all losses count.

    Returns:
      The total, a float32 scalar, and scalar metrics named `{block}/{loss}`.

    Raises:
      ValueError: If a consistency loss is asked for without pairs, or its name is unknown.
      TypeError: If an option is unknown, or a required one is missing.
    """
    if not isinstance(balance, BalanceLosses):
        balance = BalanceLosses.create(balance)
    consistency = ConsistencyLoss.create(consistency)
    total, metrics = jnp.zeros(()), {}
    for block, routing in routings.items():
        losses = dict(balance.values(routing))
        block_total = sum(
            (
                balance.scaled(name, loss, progress)
                for name, loss in losses.items()
                if balance.weight(name)
            ),
            jnp.zeros(()),
        )
        if consistency is not None and consistency.applies_to(block):
            loss, terms = consistency(routing, pairs)
            block_total += loss
            losses |= {"consistency_loss": loss, **terms}
        total += block_total
        losses["auxiliary_loss"] = block_total
        metrics |= under(block, losses)
    return total, {**metrics, "auxiliary_loss": total}
