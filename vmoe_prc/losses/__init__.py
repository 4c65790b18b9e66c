"""Losses: classification, balance of the experts, consistency of the router."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Int
from vmoe_prc.losses import balance, consistency
from vmoe_prc.losses.classification import classification_loss
from vmoe_prc.models.routing import Routing

__all__ = ["auxiliary_loss", "classification_loss"]


def auxiliary_loss(
    routings: Mapping[str, Routing],
    importance_loss_weight: float = 0.0,
    load_loss_weight: float = 0.0,
    gshard_loss_weight: float = 0.0,
    pairs: Int[Array, "B X 2"] | None = None,
    consistency_options: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums the losses on the routers' decisions: mean over groups, sum over MoE blocks.

    A loss of weight 0 is reported but does not reach the total, which stays finite even
    where that loss is not.

    Args:
      routings: Routing record of each MoE block.
      importance_loss_weight: Weight of `balance.importance_loss`.
      load_loss_weight: Weight of `balance.load_loss`, which exists with noise only.
      gshard_loss_weight: Weight of `balance.gshard_loss`.
      pairs: (B, X, 2) matched tokens, when the images are B pairs of adjacent views.
      consistency_options: `name` of the consistency loss ('prc', 'l2' or 'jsd') and its
        options: those of `consistency.prc_loss`, or `weight`; `stop_gradient`, 'view0' or
        'view1', a view that gets no gradient; `blocks`, numbers of the only blocks that
        have the loss. None for no such loss.

    Returns:
      The total, a float32 scalar, and scalar metrics named `{block}/{loss}`.

    Raises:
      ValueError: If a consistency loss is asked for without pairs.
    """
    weights = {
        "importance_loss": importance_loss_weight,
        "load_loss": load_loss_weight,
        "gshard_loss": gshard_loss_weight,
    }
    options = dict(consistency_options or {})
    blocks = options.pop("blocks", None)
    total, metrics = jnp.zeros(()), {}
    for block, routing in routings.items():
        losses = {name: jnp.mean(loss) for name, loss in _balance_losses(routing).items()}
        block_total = sum(
            (weights[name] * loss for name, loss in losses.items() if weights[name]),
            jnp.zeros(()),
        )
        if options and (blocks is None or _number(block) in blocks):
            loss, terms = _consistency_loss(routing, pairs, **options)
            block_total += loss
            losses |= {"consistency_loss": loss, **terms}
        total += block_total
        losses["auxiliary_loss"] = block_total
        metrics |= {f"{block}/{name}": value for name, value in losses.items()}
    return total, {**metrics, "auxiliary_loss": total}


def _number(block: str) -> int:
    """The number at the end of a name such as `encoderblock_3`."""
    return int(block.rpartition("_")[2])


def _balance_losses(routing: Routing) -> dict[str, jax.Array]:
    losses = {
        "importance_loss": balance.importance_loss(routing.gates),
        "gshard_loss": balance.gshard_loss(routing.dispatch_gates),
    }
    if routing.noisy_logits is not None:
        losses["load_loss"] = balance.load_loss(
            routing.logits,
            routing.noisy_logits,
            routing.noise_scale,
            routing.experts.shape[-1],
        )
    return losses


def _consistency_loss(
    routing: Routing,
    pairs: jax.Array | None,
    name: str,
    weight: float = 1.0,
    stop_gradient: str | None = None,
    **options: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    if pairs is None:
        raise ValueError(f"the consistency loss {name!r} needs pairs of matched tokens")
    num_pairs, num_experts = pairs.shape[0], routing.gates.shape[-1]
    gates = routing.gates.reshape(num_pairs, 2, -1, num_experts)  # (B, 2, T, E)
    if stop_gradient:
        view = {"view0": 0, "view1": 1}[stop_gradient]
        gates = gates.at[:, view].set(jax.lax.stop_gradient(gates[:, view]))
    if name == "prc":
        return consistency.prc_loss(gates, pairs, **options)
    loss = {"l2": consistency.l2_consistency, "jsd": consistency.jsd_consistency}[name]
    return weight * loss(gates, pairs), {}
