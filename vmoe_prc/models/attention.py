"""Softmax attention by the fastest implementation that the devices and the shapes allow."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float

CUDNN_MAX_HEAD_SIZE = 128
# DINOv3's.
ROPE_BASE = 100.0


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


def _cudnn_fits(query: Array) -> bool:
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return half and query.shape[-1] % 8 == 0 and query.shape[-1] <= CUDNN_MAX_HEAD_SIZE


def _mesh_is_nvidia() -> bool:
    device = jax.sharding.get_abstract_mesh().abstract_device
    # CUDA and ROCm both call their platform "gpu".
    return device is not None and "nvidia" in device.device_kind.lower()


def _cudnn_attention(query: Array, key: Array, value: Array) -> Array:
    """Flash attention; JAX refuses odd lengths in training, which get one token of padding."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    query_lengths = key_lengths = None
    if num_queries % 2 or num_keys % 2:
        query_lengths = jnp.full(query.shape[0], num_queries, jnp.int32)
        key_lengths = jnp.full(query.shape[0], num_keys, jnp.int32)
        query, key, value = _even(query), _even(key), _even(value)
    outputs = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    return outputs[:, :num_queries]


def _even(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


@dataclasses.dataclass(frozen=True)
class Rotations:
    """Rotary position embedding of patches (RoPE, arXiv 2104.09864), as DINOv3 has it.

    Half of each head's channels turn with the row of a patch, half with its column; channel c
    of the first half of a head forms a plane with channel c + Dh / 2. The coordinates are
    the centres of the patches, in [-1, 1] over the image (arXiv 2508.10104).

    Attributes:
      rows: Rows of patches.
      cols: Columns of patches.
      base: Ratio of the longest to the shortest period.
      num_registers: Tokens at the end that have no place.
    """

    rows: int
    cols: int
    base: float = ROPE_BASE
    num_registers: int = 0

    def angles(self, head_size: int) -> Float[Array, "P Dh"]:
        """Returns the angle of each patch and channel in radians, float32.

        Raises:
          ValueError: If the size of the heads is not a multiple of 4.
        """
        if head_size % 4:
            raise ValueError(f"rope2d needs heads of a multiple of 4 channels, not {head_size}")
        frequency = self.base ** -jnp.arange(0, 1, 4 / head_size)
        places = jnp.meshgrid(*map(_centres, (self.rows, self.cols)), indexing="ij")
        angles = 2 * jnp.pi * jnp.stack(places, axis=-1)[..., None] * frequency
        angles = angles.reshape(self.rows * self.cols, -1)
        return jnp.concatenate([angles, angles], axis=-1)

    def attention(
        self,
        query: Float[Array, "N T H Dh"],
        key: Float[Array, "N T H Dh"],
        value: Float[Array, "N T H Dh"],
        **options,
    ) -> Float[Array, "N T H Dh"]:
        """`attention` of rotated queries and keys."""
        return attention(self.rotate(query), self.rotate(key), value, **options)

    def rotate(self, x: Float[Array, "N T H Dh"]) -> Float[Array, "N T H Dh"]:
        """Turns the channels of the patches; other tokens stay."""
        angles = self.angles(x.shape[-1])
        end = x.shape[1] - self.num_registers
        begin = end - len(angles)
        patches = x[:, begin:end].astype(jnp.float32)
        first, second = jnp.split(patches, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
        cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))
        turned = patches * cos + turned * sin
        return jnp.asarray(x).at[:, begin:end].set(turned.astype(x.dtype))


def _centres(count: int) -> Float[Array, " count"]:
    """Returns the centres of equal parts of [-1, 1]."""
    return (2 * jnp.arange(count) + 1) / count - 1
