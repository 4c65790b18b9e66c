"""Losses that spread tokens over the experts, one value per routing group."""

import functools

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
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
    """Squared variation of the chance to be chosen (V-MoE, appendix A.2).

    The chance of an expert is that of its logit, with its noise drawn again, to reach
    the K-th largest noisy logit of the token.

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
