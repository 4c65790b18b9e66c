"""The entropy losses of LIMoE (arXiv 2206.02770, section 2.2), for one modality."""

import dataclasses

import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.options import BalanceOptions, mean_over_scope
from vmoe_prc.models.routing import Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalEntropyOptions(BalanceOptions):
    """Options of `local_entropy_loss`."""

    local_entropy_loss_weight: float = option(
        0.0, "Weight of LIMoE's local entropy loss: decided gates of each token.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalEntropyOptions(BalanceOptions):
    """Options of `global_entropy_loss`."""

    global_entropy_loss_weight: float = option(
        0.0, "Weight of LIMoE's global entropy loss: experts used equally on average.", minimum=0.0
    )
    global_entropy_threshold: float | None = option(
        None,
        "Entropy of the mean gates, in nats, above which that loss is 0; None for no threshold.",
        minimum=0.0,
    )


def local_entropy_loss(gates: Float[Array, "G S E"]) -> Float[Array, " G"]:
    """Mean over tokens of the entropy of their gates, in nats.

    Args:
      gates: (G, S, E) noise-free gates.
    """
    return jnp.mean(_entropy(gates), axis=1)


def global_entropy_loss(
    gates: Float[Array, "G S E"], threshold: float | None = None, scope: str = "group"
) -> Float[Array, " _"]:
    """Minus the entropy of the mean gates, in nats; or what it lacks to a threshold.

    Args:
      gates: (G, S, E) noise-free gates.
      threshold: Entropy that is enough: the loss is max(0, threshold - entropy).
      scope: 'group', with one value per group, or 'batch', with one in all.
    """
    entropy = _entropy(mean_over_scope(gates, scope))
    return -entropy if threshold is None else jnp.maximum(threshold - entropy, 0)


def _entropy(p: Array) -> Array:
    # The inner where keeps the gradient finite where a gate underflows to 0.
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1)


@BALANCE_LOSSES.register("local_entropy_loss", options=LocalEntropyOptions)
def _local(routing: Routing, options: LocalEntropyOptions) -> Array:
    del options
    return local_entropy_loss(routing.gates)


@BALANCE_LOSSES.register("global_entropy_loss", options=GlobalEntropyOptions)
def _global(routing: Routing, options: GlobalEntropyOptions) -> Array:
    return global_entropy_loss(routing.gates, options.global_entropy_threshold, options.scope)
