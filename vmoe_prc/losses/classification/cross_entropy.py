"""Cross-entropies of one-hot (or soft) labels."""

import jax.numpy as jnp
import optax

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.registry import CLASSIFICATION_LOSSES
from vmoe_prc.losses.classification.options import ClassificationOptions, SigmoidOptions


@CLASSIFICATION_LOSSES.register(options=ClassificationOptions)
def softmax_xent(
    logits: Float[Array, "N classes"],
    labels: Float[Array, "N classes"],
    options: ClassificationOptions,
) -> Float[Array, " N"]:
    """Cross-entropy of the softmax, per image."""
    del options
    return optax.softmax_cross_entropy(logits, labels)


@CLASSIFICATION_LOSSES.register(options=SigmoidOptions)
def sigmoid_xent(
    logits: Float[Array, "N classes"],
    labels: Float[Array, "N classes"],
    options: ClassificationOptions,
) -> Float[Array, " N"]:
    """Binary cross-entropies, summed over the classes, per image."""
    del options
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
