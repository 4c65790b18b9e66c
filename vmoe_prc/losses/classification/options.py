"""Options that all classification losses share."""

import dataclasses
from typing import ClassVar

from vmoe_prc.config.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """Options of every classification loss; one of your own adds its fields in a subclass.

    Attributes:
      ACTIVATION: Function from logits to probabilities: 'softmax' or 'sigmoid'.
    """

    ACTIVATION: ClassVar[str] = "softmax"

    label_smoothing: float = option(
        0.0, "Share of the label weight that is spread over all classes.", minimum=0.0, maximum=1.0
    )


class SigmoidOptions(ClassificationOptions):
    """Options of losses of one binary decision for each class."""

    ACTIVATION = "sigmoid"
