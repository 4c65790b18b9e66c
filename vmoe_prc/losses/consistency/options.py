"""Options that all consistency losses share."""

import dataclasses
from typing import ClassVar

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option

LossAndTerms = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyOptions:
    """Options of every consistency loss; one of your own adds its fields in a subclass.

    Attributes:
      label: Name of the method in tables and figures; its name in the registry if empty.
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
