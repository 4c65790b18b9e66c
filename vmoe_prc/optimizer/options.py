"""Options that all optimisers share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import SCHEDULES

Patterns = str | Sequence[str]
DecayRules = Sequence[tuple[str, float]]


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
    trainable_pattern: Patterns | None = option(
        None,
        "Regex, or several, of the names of the only parameters that change; None for all. Not "
        "together with `frozen_pattern`.",
    )
    gradient_scale: Sequence[tuple[str, float]] | None = option(
        None,
        "Pairs (regex, factor) by which gradients are scaled before they are clipped; the first "
        "regex found in a parameter's name counts. It is no learning rate of a parameter: Adam "
        "does not feel it, and sums of gradients keep it.",
    )

    def __post_init__(self):
        """Raises ValueError if patterns of both kinds are given."""
        if self.frozen_pattern and self.trainable_pattern:
            raise ValueError(
                f"takes frozen_pattern = {self.frozen_pattern!r} or trainable_pattern = "
                f"{self.trainable_pattern!r}, not both"
            )
