"""Softmax attention through the fastest path that the device and the shapes allow."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float


def attention(
    query: Float[Array, "N T H Dh"],
    key: Float[Array, "N S H Dh"],
    value: Float[Array, "N S H Dh"],
    *,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    broadcast_dropout: bool = True,
    deterministic: bool = True,
) -> Float[Array, "N T H Dh"]:
    """Attention for linen's `attention_fn`, equal to linen's own to rounding.

    cuDNN's flash kernel serves half precision on NVIDIA GPUs and XLA's fused attention
    everything else; dropout on the attention weights needs the weights themselves.

    Args:
      query: (N, T, H, Dh) for N sequences of T tokens and H heads.
      key: (N, S, H, Dh).
      value: (N, S, H, Dh).
      dropout_rng: Random key of the dropout.
      dropout_rate: Share of the attention weights set to zero.
      broadcast_dropout: Whether images and heads share one dropout mask.
      deterministic: Whether dropout is off.
    """
    if dropout_rate > 0 and not deterministic:
        return nn.dot_product_attention(
            query,
            key,
            value,
            dropout_rng=dropout_rng,
            dropout_rate=dropout_rate,
            broadcast_dropout=broadcast_dropout,
        )
    implementation = "cudnn" if _flash_attention_fits(query) else "xla"
    with jax.named_scope("attention"):
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def _flash_attention_fits(query: jax.Array) -> bool:
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    head_size = query.shape[-1]
    return half and head_size % 8 == 0 and head_size <= 128 and _on_nvidia_gpu()


def _on_nvidia_gpu() -> bool:
    # The platform version tells CUDA from ROCm; both call themselves "gpu".
    if jax.default_backend() != "gpu":
        return False
    return "cuda" in jax.devices()[0].client.platform_version.lower()
