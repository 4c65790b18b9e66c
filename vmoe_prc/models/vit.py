"""The vision transformer with MoE blocks; parameters are named as in V-MoE's releases."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import Config
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import MODELS, POSITION_EMBEDDINGS
from vmoe_prc.models import fsdp
from vmoe_prc.models.attention import ROPE_BASE, Rotations, attention
from vmoe_prc.models.moe import DotGeneral, MlpBlock, MlpMoeBlock
from vmoe_prc.models.options import CLASSIFIERS, LAYER_NORM_EPSILON, ModelOptions
from vmoe_prc.models.patch_embedding import patch_products
from vmoe_prc.models.routing import Routing

SINCOS2D_TEMPERATURE = 10_000.0


@MODELS.register(options=ModelOptions)
class VisionTransformerMoe(nn.Module):
    """Sparse mixture-of-experts vision transformer (V-MoE, arXiv 2106.05974).

    Attributes:
      num_classes: Number of classes; None gives the representation instead of logits.
      patch_size: (height, width) of a patch in pixels.
      hidden_size: D.
      encoder: Options of the `Encoder`.
      classifier: 'token' (class token), 'gap' (mean of the tokens) or 'map' (attention
        pooling).
      representation_size: Width of the tanh layer before the head; None for none.
      head_bias_init: Initial bias of the head.
      head_kernel_zero_init: Whether the kernel of the head starts at zero.
      ensemble_average: Probabilities of an ensemble's members that are averaged: 'softmax' or
        'sigmoid'.
      deterministic: Whether dropout and routing noise are off, and the members of an ensemble
        are averaged.
      dtype: Dtype of the computation, such as 'bfloat16'; `encoder['dtype']`, if given, is the
        dtype of the blocks. Parameters and the logits are float32.
      shard_kernels: Whether the kernels of all layers but the experts are split over the
        devices of the mesh, see `models.sharded`.
    """

    num_classes: int | None
    patch_size: tuple[int, int]
    hidden_size: int
    encoder: Config
    classifier: str = "token"
    representation_size: int | None = None
    head_bias_init: float = 0.0
    head_kernel_zero_init: bool = True
    ensemble_average: str = "softmax"
    deterministic: bool = False
    dtype: Any = None
    shard_kernels: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W 3"], mask: Bool[Array, " N"] | None = None
    ) -> tuple[Float[Array, "rows classes"], dict[str, Routing]]:
        """Classifies images.

        Args:
          images: (N, H, W, 3) pixels in [-1, 1].
          mask: (N,) bool, False for rows that fill up a batch, whose tokens must not take
            the experts' capacity from others; None if there are none.

        Returns:
          (N, num_classes) float32 logits, and the routing record of each MoE block by
          its name, such as `encoderblock_3`. In training the M members of an ensemble have a row
          each, (N * M, num_classes), members of an image adjacent.

        Raises:
          ValueError: If the patches do not tile the image, or the classifier is unknown.
        """
        patch_size = tuple(self.patch_size)
        if any(side % p for side, p in zip(images.shape[1:3], patch_size, strict=True)):
            raise ValueError(
                f"patch_size = {patch_size} does not divide the image size {images.shape[1:3]}"
            )
        if self.classifier not in CLASSIFIERS:
            raise ValueError(
                f"unknown classifier {self.classifier!r}; allowed: {', '.join(CLASSIFIERS)}"
            )
        x = nn.Conv(
            self.hidden_size,
            kernel_size=patch_size,
            strides=patch_size,
            padding="VALID",
            dtype=self.dtype,
            conv_general_dilated=fsdp.patch_products if self.shard_kernels else patch_products,
            name="embedding",
        )(images)
        num_images, rows, cols, _ = x.shape
        x = x.reshape(num_images, rows * cols, -1)  # (N, P, D)
        if self.classifier == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden_size))
            cls = _repeated(cls, (num_images, 1, self.hidden_size), x.dtype)
            x = jnp.concatenate([cls, x], axis=1)  # (N, T, D)
        x, routings = Encoder(
            **{**self.encoder, "dtype": self.encoder.get("dtype") or self.dtype},
            grid=(rows, cols),
            deterministic=self.deterministic,
            output_dtype=self.dtype,
            dot_general=self._dot_general,
            name="Encoder",
        )(x, mask)
        x = self._pool(x)
        if self.representation_size is not None:
            x = nn.Dense(
                self.representation_size,
                dtype=self.dtype,
                dot_general=self._dot_general,
                name="pre_logits",
            )(x)
            x = nn.tanh(x)
        x = x.astype(jnp.float32)
        averaged = members_of(self.encoder) > 1 and self.deterministic
        if self.num_classes is None:
            return jnp.mean(self._by_member(x), axis=1) if averaged else x, routings
        logits = nn.Dense(
            self.num_classes,
            kernel_init=(
                nn.initializers.zeros
                if self.head_kernel_zero_init
                else nn.initializers.lecun_normal()
            ),
            bias_init=nn.initializers.constant(self.head_bias_init),
            dot_general=self._dot_general,
            name="head",
        )(x)
        if averaged:
            logits = ensemble_logits(self._by_member(logits), self.ensemble_average)
        return logits, routings

    def _by_member(self, x: Float[Array, "NM F"]) -> Float[Array, "N M F"]:
        return x.reshape(-1, members_of(self.encoder), x.shape[-1])

    @property
    def _dot_general(self) -> DotGeneral:
        return fsdp.dot_general if self.shard_kernels else None

    def _pool(self, x: Float[Array, "N T D"]) -> Float[Array, "N D"]:
        if self.classifier == "token":
            return x[:, 0]
        if self.classifier == "gap":
            return jnp.mean(x, axis=1)
        return MapHead(
            mlp_dim=self.encoder["mlp_dim"],
            num_heads=self.encoder["num_heads"],
            gelu=self.encoder.get("gelu", "tanh"),
            layer_norm_epsilon=self.encoder.get("layer_norm_epsilon", LAYER_NORM_EPSILON),
            qk_norm=self.encoder.get("attention_qk_norm", False),
            dtype=self.dtype,
            dot_general=self._dot_general,
            name="MapHead",
        )(x)


# What is kept for the backward pass; products of activations with each other are attention's.
_SAVED = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "all_but_products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Encoder(nn.Module):
    """Transformer encoder; the MLPs of the blocks listed in `moe` are mixtures.

    Attributes:
      num_layers: Number of blocks.
      mlp_dim: Hidden width of the MLPs.
      num_heads: Number of attention heads.
      grid: (rows, columns) of patches.
      dropout_rate: Dropout after the embedding, the attention and inside the MLPs.
      attention_dropout_rate: Dropout of the attention weights.
      attention_qk_norm: Whether queries and keys are normalised.
      moe: Options of the `MlpMoeBlock`s, and the block numbers as `layers`; a `mlp_dim`
        or `dropout_rate` here, if it is not None, applies to the experts.
      position_emb: `name` of the position embedding: 'learned' (default), 'sincos2d'
        (with a `temperature`), 'rope2d' (with a `base`) or 'none'.
      num_registers: Learned tokens in addition, which have no place (arXiv 2309.16588). In
        mixtures they use the mean of the experts' parameters, and are not routed.
      layer_scale: Initial factor of each channel of what attention and MLP add (arXiv
        2103.17239); None for no such factors.
      gelu: 'tanh', the approximation of V-MoE, or 'exact'.
      layer_norm_epsilon: Added to variances.
      deterministic: Whether dropout and routing noise are off.
      remat: Activations that the backward pass computes again: 'none', 'blocks' (all of a
        block but its input) or 'all_but_products' (all but the results of products with
        kernels).
      dtype: Dtype of the computation of the blocks.
      output_dtype: Dtype of the last norm.
      dot_general: Product with the kernels of the dense layers; JAX's own if None.
    """

    num_layers: int
    mlp_dim: int
    num_heads: int
    grid: tuple[int, int]
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_qk_norm: bool = False
    moe: Config | None = None
    position_emb: Config | None = None
    num_registers: int = 0
    layer_scale: float | None = None
    gelu: str = "tanh"
    layer_norm_epsilon: float = LAYER_NORM_EPSILON
    deterministic: bool = False
    remat: str = "none"
    dtype: Any = None
    output_dtype: Any = None
    dot_general: DotGeneral = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], mask: Bool[Array, " N"] | None = None
    ) -> tuple[jax.Array, dict[str, Routing]]:
        """Encodes (N, T, D) tokens; returns them and the routing record of each block."""
        x = self._add_position_embedding(x)
        if self.num_registers:
            x = Registers(self.num_registers, name="registers")(x)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=self.deterministic)
        shared = {
            "mlp_dim": self.mlp_dim,
            "dropout_rate": self.dropout_rate,
            "gelu": self.gelu,
        }
        own = {
            key: value
            for key, value in (self.moe or {}).items()
            if key not in shared or value is not None
        }
        moe = {**shared, **own}
        moe_layers = tuple(moe.pop("layers", ()))
        block_class = EncoderBlock
        if self.remat != "none":
            block_class = nn.remat(EncoderBlock, policy=_SAVED[self.remat])
        routings = {}
        for block in range(self.num_layers):
            name = f"encoderblock_{block}"
            is_moe = block in moe_layers
            if is_moe and not routings:  # From here on the members of an ensemble differ.
                members = moe.get("ensemble_size", 1)
                x = jnp.repeat(x, members, axis=0)
                mask = None if mask is None else jnp.repeat(mask, members, axis=0)
            x, routing = block_class(
                mlp=moe if is_moe else shared,
                is_moe=is_moe,
                num_heads=self.num_heads,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                rotations=self._rotations(),
                num_registers=self.num_registers,
                layer_scale=self.layer_scale,
                layer_norm_epsilon=self.layer_norm_epsilon,
                attention_qk_norm=self.attention_qk_norm,
                deterministic=self.deterministic,
                dtype=self.dtype,
                dot_general=self.dot_general,
                name=name,
            )(x, mask)
            if is_moe:
                routings[name] = routing
        if self.num_registers:
            x = x[:, : -self.num_registers]
        norm = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.output_dtype, name="encoder_norm")
        return norm(x), routings

    def _rotations(self) -> Rotations | None:
        options = dict(self.position_emb or {})
        if options.pop("name", None) != "rope2d":
            return None
        return Rotations(*self.grid, num_registers=self.num_registers, **options)

    def _add_position_embedding(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        options = dict(self.position_emb or {})
        name = options.pop("name", "learned")
        return POSITION_EMBEDDINGS[name](x, self.grid, **options)


@POSITION_EMBEDDINGS.register("learned")
def _add_learned(x: Array, grid: tuple[int, int]) -> Array:
    del grid
    return AddPositionEmbs(name="posembed_input")(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope2dOptions:
    """Options of `rope2d`."""

    base: float = option(ROPE_BASE, "Ratio of the longest to the shortest period.", above=1.0)


@POSITION_EMBEDDINGS.register("rope2d", options=Rope2dOptions)
def _add_nothing(x: jax.Array, grid: tuple[int, int], **options: float) -> jax.Array:
    """Queries and keys are rotated in each block instead, see `attention.Rotations`."""
    del grid, options
    return x


@POSITION_EMBEDDINGS.register("none")
def _add_none(x: Array, grid: tuple[int, int]) -> Array:
    del grid
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sincos2dOptions:
    """Options of `sincos2d`."""

    temperature: float = option(
        SINCOS2D_TEMPERATURE, "Ratio of the longest to the shortest wavelength.", above=0.0
    )


@POSITION_EMBEDDINGS.register("sincos2d", options=Sincos2dOptions)
def _add_sincos2d(x: Array, grid: tuple[int, int], **options: float) -> Array:
    embedding = sincos2d_embedding(*grid, x.shape[-1], **options).astype(x.dtype)
    # The class token, if there is one, comes first and has no position.
    first_patch = x.shape[1] - embedding.shape[0]
    return jnp.asarray(x).at[:, first_patch:].add(embedding)


class AddPositionEmbs(nn.Module):
    """Adds a learned vector to each position."""

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Adds the (1, T, D) embedding."""
        shape = (1, *x.shape[1:])
        embedding = self.param("pos_embedding", nn.initializers.normal(stddev=0.02), shape)
        return x + _repeated(embedding, x.shape, x.dtype)


class Registers(nn.Module):
    """Appends learned tokens.

    Attributes:
      count: R, the number of tokens.
    """

    count: int

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> jax.Array:
        """Returns (N, T + R, D)."""
        shape = (1, self.count, x.shape[-1])
        tokens = self.param("tokens", nn.initializers.normal(stddev=0.02), shape)
        tokens = _repeated(tokens, (x.shape[0], *shape[1:]), x.dtype)
        return jnp.concatenate([x, tokens], axis=1)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor.

    Attributes:
      init: Initial factor.
    """

    init: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Returns the scaled tokens."""
        scale = self.param("scale", nn.initializers.constant(self.init), x.shape[-1:])
        return x * _repeated(scale, x.shape, x.dtype)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block whose MLP may be a mixture of experts.

    Attributes:
      mlp: Options of the MLP, or of the mixture.
      is_moe: Whether the MLP is a mixture of experts.
      num_heads: Number of attention heads.
      dropout_rate: Dropout after the attention.
      attention_dropout_rate: Dropout of the attention weights.
      rotations: Rotations of queries and keys; None for none.
      num_registers: Tokens at the end that are not routed.
      layer_scale: See `Encoder`.
      layer_norm_epsilon: Added to variances.
      attention_qk_norm: Whether queries and keys are normalised.
      deterministic: Whether dropout and routing noise are off.
      dtype: Dtype of the computation.
      dot_general: Product with the kernels of the dense layers; JAX's own if None.
    """

    mlp: Config
    is_moe: bool
    num_heads: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    rotations: Rotations | None = None
    num_registers: int = 0
    layer_scale: float | None = None
    layer_norm_epsilon: float = LAYER_NORM_EPSILON
    attention_qk_norm: bool = False
    deterministic: bool = False
    dtype: Any = None
    dot_general: DotGeneral = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "N T D"], mask: Bool[Array, " N"] | None = None
    ) -> tuple[jax.Array, Routing | None]:
        """Applies attention and MLP; returns tokens and the routing of a mixture."""
        x = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="LayerNorm_0")(inputs)
        x = nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            broadcast_dropout=False,
            deterministic=self.deterministic,
            dropout_rate=self.attention_dropout_rate,
            normalize_qk=self.attention_qk_norm,
            attention_fn=attention if self.rotations is None else self.rotations.attention,
            qkv_dot_general=self.dot_general,
            out_dot_general=self.dot_general,
            name="SelfAttention",
        )(x, x)
        x = self._scaled(x, "LayerScale_0")
        x = nn.Dropout(self.dropout_rate)(x, deterministic=self.deterministic)
        x = x + inputs

        y = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="LayerNorm_1")(x)
        options = {
            **self.mlp,
            "deterministic": self.deterministic,
            "dtype": self.dtype,
            "dot_general": self.dot_general,
        }
        if self.is_moe:
            y, routing = MlpMoeBlock(**options, name="Moe")(y, mask, self.num_registers)
        else:
            y, routing = MlpBlock(**options, name="Mlp")(y), None
        return x + self._scaled(y, "LayerScale_1"), routing

    def _scaled(self, x: Array, name: str) -> Array:
        return x if self.layer_scale is None else LayerScale(self.layer_scale, name=name)(x)


class MapHead(nn.Module):
    """Pools the tokens by attention of one learned query (Set Transformer's pooling).

    Attributes:
      mlp_dim: Hidden width of the MLP.
      num_heads: Number of attention heads.
      gelu: Form of the GELU, see `Encoder`.
      layer_norm_epsilon: Added to variances.
      qk_norm: Whether queries and keys are normalised.
      dtype: Dtype of the computation.
      dot_general: Product with the kernels of the dense layers; JAX's own if None.
    """

    mlp_dim: int
    num_heads: int
    gelu: str = "tanh"
    layer_norm_epsilon: float = LAYER_NORM_EPSILON
    qk_norm: bool = False
    dtype: Any = None
    dot_general: DotGeneral = None

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N D"]:
        """Returns one vector an image."""
        num_images, _, size = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, size))
        probe = _repeated(probe, (num_images, 1, size), x.dtype)
        x = nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            deterministic=True,
            normalize_qk=self.qk_norm,
            attention_fn=attention,
            qkv_dot_general=self.dot_general,
            out_dot_general=self.dot_general,
            name="MultiHeadDotProductAttention",
        )(probe, x)
        y = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="LayerNorm")(x)
        y = MlpBlock(
            self.mlp_dim,
            gelu=self.gelu,
            deterministic=True,
            dtype=self.dtype,
            dot_general=self.dot_general,
            name="Mlp",
        )(y)
        return (x + y)[:, 0]


def _repeated(param: Array, shape: tuple[Any, ...], dtype: Any) -> jax.Array:
    """Repeats a float32 parameter, so that its gradient is summed in float32, and casts it.

    Sizes of the shape may be symbolic, as in an export for any batch.
    """
    return jnp.broadcast_to(param, shape).astype(dtype)


def members_of(encoder: Config) -> int:
    """Returns M, the members of the ensemble that an encoder is; 1 for none."""
    return (encoder.get("moe") or {}).get("ensemble_size", 1)


def ensemble_logits(logits: Float[Array, "N M classes"], average: str) -> Float[Array, "N classes"]:
    """Returns the logits of the mean of the members' probabilities.

    Their softmax, or for the average 'sigmoid' their sigmoid, is that mean.

    Args:
      logits: (N, M, classes) float32.
      average: 'softmax' or 'sigmoid'.
    """

    def log_mean(log_probabilities):
        return jax.nn.logsumexp(log_probabilities, axis=1) - jnp.log(logits.shape[1])

    if average == "softmax":
        return log_mean(jax.nn.log_softmax(logits))
    return log_mean(jax.nn.log_sigmoid(logits)) - log_mean(jax.nn.log_sigmoid(-logits))


def sincos2d_embedding(
    rows: int, cols: int, size: int, temperature: float = SINCOS2D_TEMPERATURE
) -> Float[Array, "P D"]:
    """Returns fixed position embeddings of a grid (MoCo v3, arXiv 2104.02057).

    Args:
      rows: Rows of the grid.
      cols: Columns of the grid.
      size: D, a multiple of 4 and at least 8.
      temperature: Ratio of the longest to the shortest wavelength.

    Returns:
      (rows * cols, D) float32: sine and cosine of the column, then of the row.

    Raises:
      ValueError: If D is not a multiple of 4, or less than 8.
    """
    if size % 4 or size < 8:
        raise ValueError(f"hidden_size = {size} must be a multiple of 4, at least 8, for sincos2d")
    row, col = jnp.divmod(jnp.arange(rows * cols), cols)
    frequency = temperature ** (-jnp.arange(size // 4) / (size // 4 - 1))
    x, y = col[:, None] * frequency, row[:, None] * frequency
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)
