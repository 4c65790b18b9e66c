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
# Average of the probabilities of an ensemble's members.
ENSEMBLE_AVERAGES = ("softmax", "sigmoid")
ENSEMBLE_ROUTER = "NoisyTopExpertsPerItemRouter"
SPLIT_RNGS = ("params", "dropout")
REMAT = ("none", "blocks", "all_but_products")
# No array of a model that can be trained has a longer side.
MAX_SIZE = 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeOptions:
    """The blocks whose MLP is a mixture of experts."""

    num_experts: int = option(
        0,
        "Experts per MoE block, E; may be left out where `layers` is empty.",
        minimum=0,
        maximum=MAX_SIZE,
    )
    layers: tuple[int, ...] = option(
        (), "Numbers of the MoE blocks, from 0; none in a dense vision transformer.", minimum=0
    )
    group_size: Literal["auto"] | int = option(
        "auto",
        "Tokens per routing group; capacity is counted per group. 'auto': the tokens of 8 images, "
        "or of fewer where a device has fewer.",
        minimum=1,
        maximum=2**31 - 1,
    )
    mlp_dim: int | None = option(
        None,
        "Hidden width of an expert; None for the width of the other MLPs.",
        minimum=1,
        maximum=MAX_SIZE,
    )
    dropout_rate: float | None = option(
        None,
        "Dropout rate in the experts; None for the encoder's rate.",
        minimum=0.0,
        maximum=1.0,
    )
    split_rngs: bool | tuple[str, ...] = option(
        False,
        "Whether each expert has its own initial values and dropout; or which of the two, of "
        "('params', 'dropout').",
    )
    ensemble_size: int = option(
        1,
        "Members of an ensemble (E³, arXiv 2110.03360), each with its part of the experts; they "
        "share all blocks before the first with experts, and see each image once.",
        minimum=1,
        maximum=1_000,
    )
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

    def __post_init__(self):
        """Raises OptionError if MoE blocks have no experts, or rngs are unknown."""
        if self.layers and not self.num_experts:
            raise OptionError("num_experts", self.num_experts, "expected the experts of each block")
        if not isinstance(self.split_rngs, bool) and not set(self.split_rngs) <= set(SPLIT_RNGS):
            expected = f"expected a bool, or some of {', '.join(SPLIT_RNGS)}"
            raise OptionError("split_rngs", self.split_rngs, expected)
        if self.ensemble_size > 1:
            self._check_ensemble()

    def _check_ensemble(self):
        members, name = self.ensemble_size, self.router.get("name", ENSEMBLE_ROUTER)
        if name != ENSEMBLE_ROUTER:
            expected = f"members of an ensemble route by {ENSEMBLE_ROUTER}"
            raise OptionError("router.name", name, expected)
        if not self.layers:
            raise OptionError("layers", self.layers, "expected the blocks in which members differ")
        for field in ("num_experts", "group_size"):
            value = getattr(self, field)
            if value != "auto" and value % members:
                expected = f"must be a multiple of ensemble_size = {members}"
                raise OptionError(field, value, expected)
        own = self.num_experts // members
        if self.router.get("num_selected_experts", 1) > own:
            raise OptionError(
                "router.num_selected_experts",
                self.router["num_selected_experts"],
                f"must not exceed the {own} experts of a member",
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
    attention_qk_norm: bool = option(
        False,
        "Whether queries and keys are normalised before their product, as in Soft MoE's models.",
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
    dtype: str | None = option(
        None,
        "Type of the computation of the blocks; None for the model's type. V-MoE's field: with "
        "bfloat16 here and a float32 model, embedding, residuals, last norm, pooling and "
        "`pre_logits` stay float32.",
        choices=(None, *DTYPES),
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
    head_kernel_zero_init: bool = option(
        True, "Whether the head's kernel starts at zero; otherwise it is drawn (LeCun's normal)."
    )
    ensemble_average: str = option(
        "softmax",
        "What of the members of an ensemble is averaged in evaluation: the probabilities of one "
        "class of all, or of each class. Only where `encoder.moe.ensemble_size` is more than 1.",
        choices=ENSEMBLE_AVERAGES,
    )
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
