"""Softmax attention by the fastest implementation that the devices and the shapes allow."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float

CUDNN_MAX_HEAD_SIZE = 128


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

    cuDNN's flash attention serves half precision where the mesh in use is one of NVIDIA GPUs,
    and XLA's attention everything else; dropout on the attention weights needs the weights
    themselves. The process that traces may have other devices, or none.

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
    with jax.named_scope("attention"):
        if _cudnn_fits(query) and _mesh_is_nvidia():
            return _cudnn_attention(query, key, value)
        return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def _cudnn_fits(query: jax.Array) -> bool:
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return half and query.shape[-1] % 8 == 0 and query.shape[-1] <= CUDNN_MAX_HEAD_SIZE


def _mesh_is_nvidia() -> bool:
    device = jax.sharding.get_abstract_mesh().abstract_device
    # CUDA and ROCm both call their platform "gpu".
    return device is not None and "nvidia" in device.device_kind.lower()


def _cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Flash attention; JAX refuses odd lengths in training, which get one token of padding."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    lengths = {}
    if num_queries % 2 or num_keys % 2:
        lengths = {
            "query_seq_lengths": jnp.full(len(query), num_queries, jnp.int32),
            "key_value_seq_lengths": jnp.full(len(query), num_keys, jnp.int32),
        }
        query, key, value = _even(query), _even(key), _even(value)
    outputs = jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **lengths)
    return outputs[:, :num_queries]


def _even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
