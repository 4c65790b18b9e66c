"""Which classes are taken for which, and the worst mistakes."""

import numpy as np
import scipy.sparse

from vmoe_prc.arrays import Float, Int


def confusion_matrix(
    labels: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], num_classes: int
) -> scipy.sparse.csr_array:
    """Counts N images by true class (rows) and predicted class (columns).

    Returns:
      (C, C) int64, sparse: of the classes of ImageNet-21k a dense matrix would have 3.8 GB.
    """
    ones = np.ones(len(labels), np.int64)
    return scipy.sparse.csr_array((ones, (labels, predicted)), shape=(num_classes, num_classes))


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
