"""Correct predictions of images with one, several or no labels.

Labels are weights of the classes: one-hot, several ones (ImageNet-ReaL), soft ones of mixup, or
zeros only, for a label that is missing, -1 or beyond the classes. V-MoE's program counts an
image without labels as wrong; here it has no accuracy, as in the definition of ImageNet-ReaL
(arXiv 2006.07159), unless `config.dataset.*.unlabelled` says otherwise in evaluation.
"""

import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int


def is_labelled(labels: Float[Array, "N classes"]) -> Bool[Array, " N"]:
    """Returns for each image whether it has a label."""
    return jnp.any(labels > 0, axis=-1)


def main_class(labels: Float[Array, "N classes"]) -> Int[Array, " N"]:
    """Returns for each image the class of the largest weight, -1 for an image without labels."""
    return jnp.where(is_labelled(labels), jnp.argmax(labels, axis=-1), -1)


def is_correct(
    logits: Float[Array, "N classes"], labels: Float[Array, "N classes"]
) -> Bool[Array, " N"]:
    """Returns whether the class of the largest logit has the largest weight.

    Of several labels of equal weight any is right; an image without labels is never right.
    """
    predicted = jnp.argmax(logits, axis=-1, keepdims=True)
    weight = jnp.take_along_axis(labels, predicted, axis=-1)[:, 0]
    return (weight > 0) & (weight == jnp.max(labels, axis=-1))


def accuracy(
    logits: Float[Array, "N classes"], labels: Float[Array, "N classes"]
) -> Float[Array, ""]:
    """Returns the share of the labelled images that are right; NaN if there are none."""
    labelled = jnp.sum(is_labelled(labels), dtype=jnp.float32)
    return jnp.sum(is_correct(logits, labels), dtype=jnp.float32) / labelled
