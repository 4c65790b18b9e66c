"""Which classes are taken for which, and the worst mistakes."""

import numpy as np

from vmoe_prc.arrays import Float, Int


def confusion_matrix(
    labels: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], num_classes: int
) -> Int[np.ndarray, "C C"]:
    """Counts N images by true class (rows) and predicted class (columns), (C, C) int64."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def worst_mistakes(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"], most: int
) -> Int[np.ndarray, " M"]:
    """Returns positions of at most `most` wrong predictions, of the highest probability first.

    Args:
      labels: (N,) classes.
      probabilities: (N, C); the most probable class is predicted.
      most: How many to return.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=-1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=-1), kind="stable")
    return wrong[order][:most]
