"""Options of the model, as sections of a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vmoe_prc.config.options import OptionError, option
from vmoe_prc.config.registry import POSITION_EMBEDDINGS, ROUTERS

CLASSIFIERS = ("token", "gap", "map")
DTYPES = ("float32", "bfloat16")
GELUS = ("tanh", "exact")
LAYER_NORM_EPSILON = 1e-6
REMAT = ("none", "blocks", "all_but_products")
# No array of a model that can be trained has a longer side.
MAX_SIZE = 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeOptions:
    """The blocks whose MLP is a mixture of experts."""

    num_experts: int = option(help="Experts per MoE block, E.", minimum=1, maximum=MAX_SIZE)
    layers: tuple[int, ...] = option(help="Numbers of the MoE blocks, from 0.", minimum=0)
    group_size: Literal["auto"] | int = option(
        help="Tokens per routing group; capacity is counted per group. 'auto': those of 8 images, "
        "or of fewer where a device has fewer.",
        minimum=1,
        maximum=2**31 - 1,
    )
    dropout_rate: float = option(0.0, "Dropout rate in the experts.", minimum=0.0, maximum=1.0)
    split_rngs: bool = option(False, "Whether each expert draws its initial values separately.")
    num_shared_experts: int = option(
        0,
        "Experts that every token uses in addition to those it chooses.",
        minimum=0,
        maximum=1_000,
    )
    router: Mapping[str, Any] = option(
        lambda: {"name": "NoisyTopExpertsPerItemRouter"},
        "The router of the MoE blocks.",
        choices=ROUTERS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """The transformer blocks."""

    num_layers: int = option(help="Number of blocks.", minimum=1, maximum=256)
    mlp_dim: int = option(
        help="Hidden width of the MLPs and experts.",
        minimum=1,
        maximum=MAX_SIZE,
    )
    num_heads: int = option(
        help="Attention heads; they must divide `hidden_size`.", minimum=1, maximum=MAX_SIZE
    )
    dropout_rate: float = option(
        0.0, "Dropout rate after embedding and attention, and in MLPs.", minimum=0.0, maximum=1.0
    )
    attention_dropout_rate: float = option(
        0.0, "Dropout rate of the attention weights.", minimum=0.0, maximum=1.0
    )
    position_emb: Mapping[str, Any] = option(
        lambda: {"name": "learned"}, "How patches get their position.", choices=POSITION_EMBEDDINGS
    )
    num_registers: int = option(
        0, "Learned tokens in addition, which are not routed.", minimum=0, maximum=1_000
    )
    layer_scale: float | None = option(
        None,
        "Initial factor of each channel that attention and MLPs add; None for no such factors.",
    )
    gelu: str = option(
        "tanh", "GELU of the MLPs: V-MoE's approximation by tanh, or exact.", choices=GELUS
    )
    layer_norm_epsilon: float = option(
        LAYER_NORM_EPSILON, "Number that layer norms add to variances.", above=0.0
    )
    remat: str = option(
        "none",
        "What the backward pass computes again instead of keeping it: nothing, whole blocks, or "
        "all of a block but its matrix products.",
        choices=REMAT,
    )
    moe: MoeOptions = option(MoeOptions, "Mixtures of experts.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The vision transformer."""

    num_classes: int = option(
        help="Number of classes, the outputs of the head.", minimum=1, maximum=MAX_SIZE
    )
    patch_size: tuple[int, int] = option(
        help="Height and width of a patch in pixels; they must divide the image's.",
        minimum=1,
        maximum=MAX_SIZE,
        form="(height, width) in pixels, ints",
    )
    hidden_size: int = option(help="Width of a token.", minimum=1, maximum=MAX_SIZE)
    classifier: str = option(
        "token",
        "What the head reads: the class token, the mean of the tokens (`gap`), or a learned "
        "attention pooling (`map`).",
        choices=CLASSIFIERS,
    )
    representation_size: int | None = option(
        None,
        "Width of a tanh layer before the head; None for no such layer.",
        minimum=1,
        maximum=MAX_SIZE,
    )
    head_bias_init: float = option(0.0, "Initial bias of the head.")
    dtype: str = option(
        "float32", "Type of the computation; parameters and routers are float32.", choices=DTYPES
    )
    encoder: EncoderOptions = option(EncoderOptions, "Transformer blocks.")

    def __post_init__(self):
        """Raises OptionError if the width does not suit heads or position embedding."""
        heads = self.encoder.num_heads
        if self.hidden_size % heads:
            expected = f"must divide hidden_size = {self.hidden_size}"
            raise OptionError("encoder.num_heads", heads, expected)
        sincos2d = self.encoder.position_emb["name"] == "sincos2d"
        if sincos2d and (self.hidden_size % 4 or self.hidden_size < 8):
            expected = "must be a multiple of 4, at least 8, for position_emb 'sincos2d'"
            raise OptionError("hidden_size", self.hidden_size, expected)
