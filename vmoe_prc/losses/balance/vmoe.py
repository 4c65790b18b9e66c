"""The balance losses of V-MoE (arXiv 2106.05974, appendix A) and of GShard."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.models.routing import Routing
from vmoe_prc.runtime.mesh import BATCH, on_each_device


def importance_loss(gates: Float[Array, "G S E"]) -> Float[Array, " G"]:
    """Squared coefficient of variation of the gates' sums (V-MoE, appendix A.2).

    Args:
      gates: (G, S, E) noise-free gates.
    """
    return _squared_variation(jnp.sum(gates, axis=1))


def load_loss(
    logits: Float[Array, "G S E"],
    noisy_logits: Float[Array, "G S E"],
    noise_scale: float,
    num_selected_experts: int,
) -> Float[Array, " G"]:
    """Squared coefficient of variation of the probability to be chosen (V-MoE, appendix A.2).

    The probability of an expert is that its logit, with its noise drawn again, reaches the
    K-th largest noisy logit of the token.

    Args:
      logits: (G, S, E) noise-free logits.
      noisy_logits: (G, S, E) logits that the tokens were dispatched by.
      noise_scale: Standard deviation of the noise, `noise_std / E`.
      num_selected_experts: K.
    """
    top_k = functools.partial(jax.lax.top_k, k=num_selected_experts)
    # Left to the compiler, it would gather the logits of all devices.
    _, best = on_each_device(top_k, (BATCH,), BATCH)(jax.lax.stop_gradient(noisy_logits))
    # A one-hot sum, not a gather: its gradient needs no scatter across devices.
    last = best[..., -1:] == jnp.arange(logits.shape[-1])
    threshold = jnp.sum(jnp.where(last, noisy_logits, 0), axis=-1, keepdims=True)
    chance = 1 - jax.scipy.stats.norm.cdf((threshold - logits) / noise_scale)
    return _squared_variation(jnp.mean(chance, axis=1))


def gshard_loss(gates: Float[Array, "G S E"]) -> Float[Array, " G"]:
    """E^2 * mean over experts of (share of first choices * mean gate).

    GShard (arXiv 2006.16668), algorithm 1, with the factor E^2 of its code: 1 when
    the experts are used equally.

    Args:
      gates: (G, S, E) gates that the tokens were dispatched by.
    """
    num_experts = gates.shape[-1]
    first = jnp.argmax(gates, axis=-1, keepdims=True) == jnp.arange(num_experts)
    share = jnp.mean(first.astype(gates.dtype), axis=1)
    return num_experts**2 * jnp.mean(share * jnp.mean(gates, axis=1), axis=-1)


def _squared_variation(x: Float[Array, "G E"]) -> Float[Array, " G"]:
    # (std / mean)^2 without the root, whose gradient is infinite at equality.
    return jnp.var(x, axis=-1) / jnp.mean(x, axis=-1) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceOptions:
    """Options of `importance_loss`."""

    importance_loss_weight: float = option(
        0.0, "Weight of V-MoE's importance loss: sums of the gates.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of `load_loss`."""

    load_loss_weight: float = option(
        0.0, "Weight of V-MoE's load loss: chances to be chosen; needs noise.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GShardOptions:
    """Options of `gshard_loss`."""

    gshard_loss_weight: float = option(
        0.0, "Weight of GShard's loss: first choices times mean gates.", minimum=0.0
    )


@BALANCE_LOSSES.register("importance_loss", options=ImportanceOptions)
def _importance(routing: Routing, options: ImportanceOptions) -> jax.Array:
    del options
    return importance_loss(routing.gates)


@BALANCE_LOSSES.register("load_loss", options=LoadOptions)
def _load(routing: Routing, options: LoadOptions) -> jax.Array | None:
    del options
    if routing.noisy_logits is None:
        return None
    return load_loss(
        routing.logits, routing.noisy_logits, routing.noise_scale, routing.experts.shape[-1]
    )


@BALANCE_LOSSES.register("gshard_loss", options=GShardOptions)
def _gshard(routing: Routing, options: GShardOptions) -> jax.Array:
    del options
    return gshard_loss(routing.dispatch_gates)
