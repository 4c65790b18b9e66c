"""Evaluation on a labelled folder: accuracy by class, confusion matrix, worst mistakes."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from vmoe_prc.arrays import Float, Int
from vmoe_prc.config import ConfigError, nearest

WORST = 20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results on labelled images.

    Attributes:
      accuracy: Share of images whose most probable class is their own, in [0, 1].
      classes: One row per class that occurs: `class`, `images`, `accuracy`.
      confusion: Number of images by true class (rows) and predicted class (columns).
      mistakes: The wrong predictions of highest probability: `image`, `class`, `predicted`,
        `probability`.
    """

    accuracy: float
    classes: pd.DataFrame
    confusion: pd.DataFrame
    mistakes: pd.DataFrame


def labels_of(paths: Sequence[str], folder: str, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Returns the class of each image: the name of its folder inside `folder`.

    Args:
      paths: Images inside `folder`.
      folder: A folder with one subfolder per class, at any depth: `test/cat/1.jpg` is a cat
        where `cat` is a class.
      classes: Names of the classes.

    Raises:
      ConfigError: If an image is in no folder of a class.
    """
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for path in paths:
        folders = os.path.relpath(path, folder).split(os.sep)[:-1]
        known = [number[name] for name in folders if name in number]
        if not known:
            name = folders[-1] if folders else "."
            expected = f"{path} is in no folder of a class; classes: {', '.join(classes)}"
            raise ConfigError("--evaluate", name, expected, nearest(name, classes))
        labels.append(known[-1])
    return np.array(labels, np.int64)


def evaluate_labelled(
    paths: Sequence[str],
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N classes"],
    classes: Sequence[str],
) -> Evaluation:
    """Compares predictions with labels.

    Args:
      paths: N images.
      labels: (N,) their classes.
      probabilities: (N, classes).
      classes: Names of the classes.

    Raises:
      ValueError: If there is no image.
    """
    if not len(labels):
        raise ValueError("expected at least one image")
    predicted = probabilities.argmax(-1)
    names = np.array(classes, object)
    frame = pd.DataFrame(
        {
            "image": list(paths),
            "class": names[labels],
            "predicted": names[predicted],
            "probability": probabilities.max(-1),
        }
    )
    frame["right"] = labels == predicted
    by_class = frame.groupby("class", sort=True)["right"].agg(images="size", accuracy="mean")
    confusion = pd.crosstab(frame["class"], frame["predicted"])
    wrong = frame[~frame["right"]].sort_values("probability", ascending=False, kind="stable")
    return Evaluation(
        accuracy=float(frame["right"].mean()),
        classes=by_class.reset_index(),
        confusion=confusion,
        mistakes=wrong.drop(columns="right").head(WORST).reset_index(drop=True),
    )
