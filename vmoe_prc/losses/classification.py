"""Classification losses on one-hot (or soft) labels."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from vmoe_prc.arrays import Array, Float


def softmax_xent(
    logits: Float[Array, "N classes"], labels: Float[Array, "N classes"]
) -> Float[Array, " N"]:
    """Cross-entropy of the softmax, per image."""
    return optax.softmax_cross_entropy(logits, labels)


def sigmoid_xent(
    logits: Float[Array, "N classes"], labels: Float[Array, "N classes"]
) -> Float[Array, " N"]:
    """Binary cross-entropies, summed over the classes, per image."""
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sigmoid_xent": sigmoid_xent,
    "softmax_xent": softmax_xent,
}


def classification_loss(
    logits: Float[Array, "N classes"],
    labels: Float[Array, "M classes"],
    name: str = "softmax_xent",
    label_smoothing: float = 0.0,
) -> Float[Array, " N"]:
    """Loss per image by the name it has in a config.

    Args:
      logits: (N, classes) float32.
      labels: (N, classes) float32 weights of the classes.
      name: 'softmax_xent' or 'sigmoid_xent'.
      label_smoothing: Share of the label weight spread over all classes.

    Raises:
      ValueError: If the name is unknown, or shapes differ.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; allowed: {', '.join(sorted(LOSSES))}")
    if logits.shape != labels.shape:
        raise ValueError(f"logits of shape {logits.shape} need labels alike, not {labels.shape}")
    if label_smoothing:
        labels = optax.smooth_labels(labels, label_smoothing)
    return LOSSES[name](logits, labels)
