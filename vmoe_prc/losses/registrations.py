"""Registers routers, losses, schedules and optimisers, until their own files do."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import (
    BALANCE_LOSSES,
    CLASSIFICATION_LOSSES,
    CONSISTENCY_LOSSES,
    DISPATCHERS,
    OPTIMIZERS,
    ROUTERS,
    SCHEDULES,
)
from vmoe_prc.losses import balance, classification, consistency
from vmoe_prc.models import dispatch, routing
from vmoe_prc.optimizer import OPTIMIZERS as OPTIMIZER_FACTORIES
from vmoe_prc.schedule import create_learning_rate_schedule

DEFAULT_DISPATCHER = "gather"
DIAGONALS = consistency.DIAGONALS
Patterns = str | Sequence[str]
DecayRules = Sequence[tuple[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DispatcherOptions:
    """Options of every dispatch method; one of your own adds its fields in a subclass."""

    capacity_factor: float = option(
        1.05, "Slots of an expert relative to perfectly balanced choices.", above=0.0
    )
    batch_priority: bool = option(
        False,
        "Whether tokens with a larger first gate take their slots first (Batch Prioritized "
        "Routing); only where tokens choose experts.",
    )
    bfloat16: bool = option(
        False, "Whether tokens travel to the experts and back as bfloat16, to save bandwidth."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Options of every router; one of your own adds its fields in a subclass."""

    noise_std: float = option(
        1.0,
        "Standard deviation of the noise of the logits in training, in units of 1 / experts.",
        minimum=0.0,
    )
    dispatcher: Mapping[str, Any] = option(
        lambda: {"name": DEFAULT_DISPATCHER},
        "How tokens are sent to their experts and back.",
        choices=DISPATCHERS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopExpertsOptions(RouterOptions):
    """Options of `NoisyTopExpertsPerItemRouter`."""

    num_selected_experts: int = option(1, "Experts that each token chooses, K.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """Options of every classification loss; one of your own adds its fields in a subclass."""

    label_smoothing: float = option(
        0.0, "Share of the label weight that is spread over all classes.", minimum=0.0, maximum=1.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyOptions:
    """Options of every consistency loss; one of your own adds its fields in a subclass.

    Attributes:
      label: What tables and figures call the method; its name in the registry if empty.
    """

    label: ClassVar[str] = ""

    pair_class_tokens: bool = option(
        False, "Whether the class tokens of the two views are a pair as well."
    )
    pairs: str = option(
        "matched",
        "Which patches are pairs: those that show the same place, or ('random') the same "
        "patches with random partners in the image.",
        choices=("matched", "random"),
    )
    stop_gradient: str | None = option(
        None,
        "View whose gates get no gradient, so that the other view is drawn to it; None: both do.",
        choices=(None, "view0", "view1"),
    )
    blocks: tuple[int, ...] | None = option(
        None, "Numbers of the MoE blocks that have the loss; all of them if None."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedOptions(ConsistencyOptions):
    """Options of a loss that has one weight."""

    weight: float = option(help="Weight of the loss in the total.", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrcOptions(ConsistencyOptions):
    """Options of `prc`."""

    label: ClassVar[str] = "PRC"

    diagonal_weight: float = option(5e-3, "Weight of the diagonal term.", minimum=0.0)
    off_diagonal_weight: float = option(5e-2, "Weight of the off-diagonal term.", minimum=0.0)
    diagonal: str = option(
        "matrix",
        "Diagonal term: that of the paper ('matrix'), or of the released program.",
        choices=DIAGONALS,
    )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Clipping of the gradients; at most one of the two."""

    global_norm: float | None = option(
        None, "Norm of all gradients together above which they are scaled down.", above=0.0
    )
    absolute_value: float | None = option(
        None, "Absolute value to which each element of the gradients is cut.", above=0.0
    )

    def __post_init__(self):
        """Raises ValueError if both are given."""
        if self.global_norm and self.absolute_value:
            raise ValueError(
                f"gradient_clip takes global_norm = {self.global_norm} or absolute_value = "
                f"{self.absolute_value}, not both"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Options of every optimiser; an optimiser of your own adds its fields in a subclass."""

    learning_rate: Mapping[str, Any] | float = option(
        help="Learning rate: a schedule and its options.", choices=SCHEDULES
    )
    gradient_clip: ClipOptions = option(ClipOptions, "Clipping of the gradients.")
    weight_decay: float | DecayRules | None = option(
        None,
        "Decoupled weight decay: a factor for all parameters, or pairs (regex, factor), of which "
        "the first regex found in a parameter's name counts; None for no decay.",
    )
    frozen_pattern: Patterns | None = option(
        None, "Regex, or several, of the names of parameters that do not change; None for none."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamOptions(OptimizerOptions):
    """Options of `adam`."""

    b1: float = option(0.9, "Decay of the mean of the gradients.", minimum=0.0, maximum=1.0)
    b2: float = option(
        0.999, "Decay of the mean of the squared gradients.", minimum=0.0, maximum=1.0
    )
    eps: float = option(1e-8, "Added to the root of the mean square.", above=0.0)
    mu_dtype: str = option(
        "float32", "Dtype in which the mean is kept.", choices=("float32", "bfloat16")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SgdOptions(OptimizerOptions):
    """Options of `sgd`."""

    momentum: float = option(
        0.0, "Decay of the sum of earlier gradients; 0 for none.", minimum=0.0, maximum=1.0
    )
    nesterov: bool = option(False, "Whether the momentum is Nesterov's.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantOptions:
    """Options of `constant`."""

    value: float = option(help="Learning rate of every step.", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupOptions:
    """Options of every schedule that begins with a warm-up."""

    peak_value: float = option(help="Learning rate at the end of the warm-up.", minimum=0.0)
    warmup_steps: int = option(0, "Steps of the linear warm-up from 0.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayOptions(WarmupOptions):
    """Options of the cosine and the linear decay."""

    end_value: float = option(0.0, "Learning rate from the end of the decay on.", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolynomialOptions(DecayOptions):
    """Options of `warmup_polynomial_decay`."""

    power: float = option(1.0, "Exponent of the decay; 1 is linear.", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReciprocalRootOptions(WarmupOptions):
    """Options of `big_vision_rsqrt`."""

    timescale: int = option(
        help="Steps after the warm-up at which the rate is 1 / sqrt(2) of its peak.", minimum=1
    )
    cooldown_steps: int = option(
        0, "Last steps, in which the rate also decays linearly to 0.", minimum=0
    )


def _schedule(name: str, options: Any, total_steps: int) -> optax.Schedule:
    given = {key: value for key, value in vars(options).items() if value is not None}
    return create_learning_rate_schedule(schedule=name, total_steps=total_steps, **given)


for _name in (*dispatch.METHODS, dispatch.DROPLESS):
    DISPATCHERS.register(_name, options=DispatcherOptions)(routing.Dispatcher)
ROUTERS.register(options=TopExpertsOptions)(routing.NoisyTopExpertsPerItemRouter)
ROUTERS.register(options=RouterOptions)(routing.NoisyTopItemsPerExpertRouter)
for _loss in classification.LOSSES.values():
    CLASSIFICATION_LOSSES.register(options=ClassificationOptions)(_loss)
CONSISTENCY_LOSSES.register("prc", options=PrcOptions)(consistency.prc_loss)
CONSISTENCY_LOSSES.register("l2", options=WeightedOptions)(consistency.l2_consistency)
CONSISTENCY_LOSSES.register("jsd", options=WeightedOptions)(consistency.jsd_consistency)
BALANCE_LOSSES.register(options=ImportanceOptions)(balance.importance_loss)
BALANCE_LOSSES.register(options=LoadOptions)(balance.load_loss)
BALANCE_LOSSES.register(options=GShardOptions)(balance.gshard_loss)
OPTIMIZERS.register("adam", options=AdamOptions)(OPTIMIZER_FACTORIES["adam"])
OPTIMIZERS.register("sgd", options=SgdOptions)(OPTIMIZER_FACTORIES["sgd"])
for _name, _options in (
    ("constant", ConstantOptions),
    ("warmup_cosine_decay", DecayOptions),
    ("warmup_linear_decay", DecayOptions),
    ("warmup_polynomial_decay", PolynomialOptions),
    ("big_vision_rsqrt", ReciprocalRootOptions),
):
    SCHEDULES.register(_name, options=_options)(functools.partial(_schedule, _name))
