"""Evaluation on a labelled folder: accuracy by class, confusion matrix, worst mistakes."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from vmoe_prc.arrays import Float, Int
from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.evaluation.mistakes import confusion_counts, worst_mistakes

# Mistakes and confusions that are listed, and classes that a printed matrix can have.
WORST = 20
MATRIX_CLASSES = 24


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results on labelled images.

    Attributes:
      accuracy: Share of images whose most probable class is their own, in [0, 1].
      classes: One row per class that occurs: `class`, `images`, `accuracy`.
      confusion: One row per pair that occurs: `class`, `predicted`, `images`.
      mistakes: The wrong predictions of highest probability: `image`, `class`, `predicted`,
        `probability`.
      counts: (C, C) `confusion` as `confusion_counts` gives it.
      worst: Positions of the `mistakes` among the images.
    """

    accuracy: float
    classes: pd.DataFrame
    confusion: pd.DataFrame
    mistakes: pd.DataFrame
    counts: csr_array
    worst: Int[np.ndarray, " M"]


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


def count_trained_on(paths: Sequence[str], datasets: Mapping[str, Any]) -> int:
    """Counts the images that a model was trained on, as far as its class folders are still there.

    Args:
      paths: Images.
      datasets: `config.dataset` of the model.
    """
    train = datasets.get("train")
    if train is None or train["name"] != "folder" or not train["manual_dir"]:
        return 0
    try:
        files = scan_class_folders(train["manual_dir"]).splits["train"]
    except DatasetError:
        return 0
    known = {os.path.realpath(str(file.path)) for file in files}
    return sum(os.path.realpath(path) in known for path in paths)


def evaluate_labelled(
    paths: Sequence[str],
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, " N"],
    classes: Sequence[str],
) -> Evaluation:
    """Compares predictions with labels.

    Args:
      paths: N images.
      labels: (N,) their classes.
      predicted: (N,) their most probable classes.
      probabilities: (N,) of the most probable classes.
      classes: Names of the classes.

    Raises:
      ValueError: If there is no image.
    """
    if not len(labels):
        raise ValueError("expected at least one image")
    names = np.array(classes, object)
    counts = confusion_counts(labels, predicted, len(classes))
    totals = counts.sum(axis=1)
    worst = worst_mistakes(labels, predicted, probabilities, WORST)
    occurring, pairs = np.flatnonzero(totals), counts.tocoo()
    return Evaluation(
        accuracy=float((labels == predicted).mean()),
        classes=pd.DataFrame(
            {
                "class": names[occurring],
                "images": totals[occurring],
                "accuracy": counts.diagonal()[occurring] / totals[occurring],
            }
        ),
        confusion=pd.DataFrame(
            {"class": names[pairs.row], "predicted": names[pairs.col], "images": pairs.data}
        ),
        mistakes=pd.DataFrame(
            {
                "image": np.array(paths, object)[worst],
                "class": names[labels[worst]],
                "predicted": names[predicted[worst]],
                "probability": probabilities[worst],
            }
        ),
        counts=counts,
        worst=worst,
    )


def format_confusion(result: Evaluation, classes: Sequence[str]) -> str:
    """Formats confusions as a matrix; of many classes, as a list of the most frequent ones.

    Args:
      result: The evaluation.
      classes: Names of all classes.
    """
    counts, names = result.counts, np.array(classes, object)
    rows, columns = (np.flatnonzero(counts.sum(axis=axis)) for axis in (1, 0))
    if max(len(rows), len(columns)) <= MATRIX_CLASSES:
        matrix = pd.DataFrame(
            counts[rows][:, columns].toarray(),
            index=pd.Index(names[rows], name="class"),
            columns=pd.Index(names[columns], name="predicted"),
        )
        return f"confusion matrix: true classes by row, predicted by column\n{matrix.to_string()}"
    wrong = result.confusion[result.confusion["class"] != result.confusion["predicted"]]
    frequent = wrong.sort_values("images", ascending=False, kind="stable").head(WORST)
    title = f"the most frequent of {len(wrong):,} confusions of {len(rows):,} classes"
    return f"{title}\n{frequent.to_string(index=False)}"
