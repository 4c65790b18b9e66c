"""Classification losses on one-hot (or soft) labels.

A loss is a function (logits, labels, options) -> loss per image that registers itself in
`config.registry.CLASSIFICATION_LOSSES`; its options are a subclass of `ClassificationOptions`.
"""

from typing import Any

import jax
import optax

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.registry import CLASSIFICATION_LOSSES
from vmoe_prc.losses.classification.options import ClassificationOptions

__all__ = ["ClassificationOptions", "class_probabilities", "classification_loss"]


def classification_loss(
    logits: Float[Array, "N classes"],
    labels: Float[Array, "M classes"],
    name: str = "softmax_xent",
    **options: Any,
) -> Float[Array, " N"]:
    """Computes the loss of each image by the name that the loss has in a config.

    Args:
      logits: (N, classes) float32.
      labels: (N, classes) float32 weights of the classes.
      name: Name of the loss, such as 'softmax_xent' or 'sigmoid_xent'.
      **options: Fields of the loss's options, such as `label_smoothing`.

    Raises:
      ValueError: If the name is unknown, or shapes differ.
      TypeError: If an option is unknown.
    """
    loss = CLASSIFICATION_LOSSES[name]
    chosen: ClassificationOptions = CLASSIFICATION_LOSSES.options(name)(**options)
    if logits.shape != labels.shape:
        raise ValueError(
            f"logits of shape {logits.shape} need labels of the same shape, not {labels.shape}"
        )
    if chosen.label_smoothing:
        labels = optax.smooth_labels(labels, chosen.label_smoothing)
    return loss(logits, labels, chosen)


def class_probabilities(logits: Float[Array, "N classes"], name: str) -> Float[Array, "N classes"]:
    """Returns the probabilities of a model that was trained with a loss.

    Args:
      logits: (N, classes) float32.
      name: Name of the loss, such as 'softmax_xent' or 'sigmoid_xent'.
    """
    is_sigmoid = CLASSIFICATION_LOSSES.options(name).ACTIVATION == "sigmoid"
    return jax.nn.sigmoid(logits) if is_sigmoid else jax.nn.softmax(logits)
