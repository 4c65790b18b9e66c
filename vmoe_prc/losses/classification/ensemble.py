"""Losses of ensembles by V-MoE's names: each member learns separately, from its row of logits.

In evaluation the model averages its members' probabilities, so that these are also the losses of
the ensemble, see `models.vit.ensemble_logits`.
"""

import dataclasses

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import CLASSIFICATION_LOSSES
from vmoe_prc.losses.classification.cross_entropy import sigmoid_xent, softmax_xent
from vmoe_prc.losses.classification.options import ClassificationOptions, SigmoidOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ClassificationOptions):
    """Options of the losses of ensembles."""

    ensemble_size: int = option(
        help="Members, as many as `model.encoder.moe.ensemble_size` has.", minimum=1
    )


class SigmoidEnsembleOptions(EnsembleOptions, SigmoidOptions):
    """Options of `ensemble_sigmoid_xent`."""


CLASSIFICATION_LOSSES.register("ensemble_softmax_xent", options=EnsembleOptions)(softmax_xent)
CLASSIFICATION_LOSSES.register("ensemble_sigmoid_xent", options=SigmoidEnsembleOptions)(
    sigmoid_xent
)
