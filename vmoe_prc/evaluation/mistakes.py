"""Confusion matrix and worst mistakes of a classifier."""

import numpy as np
from scipy.sparse import csr_array

from vmoe_prc.arrays import Float, Int


def confusion_counts(
    labels: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], num_classes: int
) -> csr_array:
    """Counts N images by true class (rows) and predicted class (columns).

    Returns:
      A sparse (C, C) array of int64, which holds at most N counts: a dense one of 21,843 classes
      takes 3.8 GB. Counts of several batches can be added.
    """
    ones = np.ones(len(labels), np.int64)
    # The ones of a pair that occurs more than once are added.
    return csr_array((ones, (labels, predicted)), shape=(num_classes, num_classes))


def worst_mistakes(
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, " N"],
    most: int,
) -> Int[np.ndarray, " M"]:
    """Returns positions of at most `most` wrong predictions, of the highest probability first.

    Args:
      labels: (N,) true classes.
      predicted: (N,) predicted classes.
      probabilities: (N,) of the predicted classes.
      most: How many to return.
    """
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probabilities[wrong], kind="stable")
    return wrong[order][:most]
