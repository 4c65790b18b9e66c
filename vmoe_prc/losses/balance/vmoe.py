"""The balance losses of V-MoE (arXiv 2106.05974, appendix A) and of GShard."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.options import BalanceOptions, mean_over_scope
from vmoe_prc.models.routing import Routing
from vmoe_prc.runtime.mesh import BATCH, on_each_device


def importance_loss(gates: Float[Array, "G S E"], scope: str = "group") -> Float[Array, " _"]:
    """Squared coefficient of variation of the gates' sums (V-MoE, appendix A.2).

    Args:
      gates: (G, S, E) noise-free gates.
      scope: 'group', with one value per group, or 'batch', with one in all.
    """
    if scope == "group":
        return _squared_variation(jnp.sum(gates, axis=1))
    return _squared_variation(mean_over_scope(gates, scope))


def load_loss(
    logits: Float[Array, "G S E"],
    noisy_logits: Float[Array, "G S E"],
    noise_scale: float,
    num_selected_experts: int,
    scope: str = "group",
) -> Float[Array, " _"]:
    """Squared coefficient of variation of the probability to be chosen (V-MoE, appendix A.2).

    The probability of an expert is that its logit, with its noise drawn again, reaches the
    K-th largest noisy logit of the token.

    Args:
      logits: (G, S, E) noise-free logits.
      noisy_logits: (G, S, E) logits that the tokens were dispatched by.
      noise_scale: Standard deviation of the noise, `noise_std / E`.
      num_selected_experts: K.
      scope: 'group', with one value per group, or 'batch', with one in all.
    """
    top_k = functools.partial(jax.lax.top_k, k=num_selected_experts)
    # Left to the compiler, it would gather the logits of all devices.
    _, best = on_each_device(top_k, (BATCH,), BATCH)(jax.lax.stop_gradient(noisy_logits))
    # A one-hot sum, not a gather: its gradient needs no scatter across devices.
    last = best[..., -1:] == jnp.arange(logits.shape[-1])
    threshold = jnp.sum(jnp.where(last, noisy_logits, 0), axis=-1, keepdims=True)
    chance = 1 - jax.scipy.stats.norm.cdf((threshold - logits) / noise_scale)
    return _squared_variation(mean_over_scope(chance, scope))


def gshard_loss(gates: Float[Array, "G S E"], scope: str = "group") -> Float[Array, " _"]:
    """E^2 * mean over experts of (share of first choices * mean gate).

    GShard (arXiv 2006.16668), algorithm 1, with the factor E^2 of its code: 1 when
    the experts are used equally.

    Args:
      gates: (G, S, E) gates that the tokens were dispatched by.
      scope: 'group', with one value per group, or 'batch', with one in all.
    """
    num_experts = gates.shape[-1]
    first = jnp.argmax(gates, axis=-1, keepdims=True) == jnp.arange(num_experts)
    share = mean_over_scope(first.astype(gates.dtype), scope)
    return num_experts**2 * jnp.mean(share * mean_over_scope(gates, scope), axis=-1)


def _squared_variation(x: Float[Array, "G E"]) -> Float[Array, " G"]:
    # (std / mean)^2 without the root, whose gradient is infinite at equality.
    return jnp.var(x, axis=-1) / jnp.mean(x, axis=-1) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceOptions(BalanceOptions):
    """Options of `importance_loss`."""

    always_reported = True

    importance_loss_weight: float = option(
        0.0, "Weight of V-MoE's importance loss: sums of the gates.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions(BalanceOptions):
    """Options of `load_loss`."""

    always_reported = True

    load_loss_weight: float = option(
        0.0, "Weight of V-MoE's load loss: chances to be chosen; needs noise.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GShardOptions(BalanceOptions):
    """Options of `gshard_loss`."""

    always_reported = True

    gshard_loss_weight: float = option(
        0.0, "Weight of GShard's loss: first choices times mean gates.", minimum=0.0
    )


@BALANCE_LOSSES.register("importance_loss", options=ImportanceOptions)
def _importance(routing: Routing, options: ImportanceOptions) -> Array:
    return importance_loss(routing.gates, options.scope)


@BALANCE_LOSSES.register("load_loss", options=LoadOptions)
def _load(routing: Routing, options: LoadOptions) -> Array | None:
    if routing.noisy_logits is None:
        return None
    return load_loss(
        routing.logits,
        routing.noisy_logits,
        routing.noise_scale,
        routing.num_selected_experts,
        options.scope,
    )


@BALANCE_LOSSES.register("gshard_loss", options=GShardOptions)
def _gshard(routing: Routing, options: GShardOptions) -> Array:
    return gshard_loss(routing.dispatch_gates, options.scope)
