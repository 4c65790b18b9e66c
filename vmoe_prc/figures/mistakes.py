"""Figures of what a model confuses: the confusion matrix, and the worst mistakes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator, Result
from vmoe_prc.evaluation.mistakes import confusion_counts, worst_mistakes
from vmoe_prc.figures.matched_views import images_figure
from vmoe_prc.figures.panels import (
    MEDIUM,
    SMALL,
    Margins,
    class_titles,
    headline,
    place_panels,
    plain_text,
    to_display,
)
from vmoe_prc.losses.classification import class_probabilities
from vmoe_prc.models import apply_model
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import is_labelled, main_class
from vmoe_prc.steps.views import merge_views

# Images of the worst mistakes, and classes of a confusion matrix.
MOST_IMAGES = 12
MOST_CLASSES = 24
# Letters of a name that fit a title and a row.
_LETTERS = 20
# Inches; a cell is as wide as a name, turned, is high.
_CELL, _TOP, _SIDE, _LETTER = 0.34, 1.1, 0.36, 0.085


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistakesOptions:
    """Options of `mistakes`."""

    split: str = option("test", "Split of `config.dataset` to evaluate.")


@EVALUATORS.register("mistakes", options=MistakesOptions)
def mistakes(context: EvaluationContext, *, split: str) -> Evaluator:
    """Draws `confusion`, the confusion matrix of a split, and `worst`, its worst mistakes.

    With two views each view counts as an image. Images without labels do not count.

    Raises:
      ConfigError: If there is no such split.
    """
    if split not in context.splits:
        expected = f"expected one of {', '.join(context.splits)}"
        raise ConfigError("config.evaluators", split, expected, nearest(split, context.splits))
    num_classes, data = context.config.model.num_classes, context.splits[split]
    names = class_titles(np.arange(num_classes), data.class_names)

    def classify(params, batch):
        images, labels = merge_views(batch["image"], batch["labels"])
        mask = jnp.repeat(batch["mask"], len(images) // len(batch["mask"]))
        logits, _ = apply_model(context.model, params, images, mask)
        probabilities = class_probabilities(logits, context.config.loss.name)
        classes, counted = main_class(labels), mask & is_labelled(labels)
        predicted, highest = jnp.argmax(probabilities, axis=-1), probabilities.max(axis=-1)
        wrong = counted & (predicted != classes)
        # Only the worst images of a batch leave the devices.
        _, worst = jax.lax.top_k(jnp.where(wrong, highest, -1), min(MOST_IMAGES, len(images)))
        values = (classes, predicted, highest)
        found = (x[worst] for x in (images, *values, wrong))
        return (classes, predicted, counted), tuple(found)

    # Every process has the results.
    classify = jax.jit(classify, out_shardings=replicated(context.mesh))

    def run(params: Any) -> dict[str, Result]:
        counts, worst = csr_array((num_classes, num_classes), dtype=np.int64), None
        for batch in data.batches():
            (classes, predicted, counted), found = jax.device_get(classify(params, dict(batch)))
            counts += confusion_counts(classes[counted], predicted[counted], num_classes)
            worst = _worst(found, worst)
        if worst is None:
            return {}
        images, labels, predicted, highest = worst
        shown = to_display(images, data.value_range)
        return {
            "confusion": lambda: confusion_figure(counts, names),
            "worst": lambda: mistakes_figure(shown, labels, predicted, highest, names),
        }

    return run


def _worst(found: Sequence[np.ndarray], earlier: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Returns the worst mistakes of batches so far: images, classes, predicted, probabilities."""
    *values, wrong = found
    values = [x[wrong] for x in values]
    if earlier is not None:
        values = [np.concatenate(x) for x in zip(earlier, values, strict=True)]
    _, classes, predicted, highest = values
    worst = worst_mistakes(classes, predicted, highest, MOST_IMAGES)
    return [x[worst] for x in values]


def confusion_figure(counts: csr_array, names: Sequence[str]) -> Figure:
    """Draws a confusion matrix; of many classes, those with the most mistakes.

    Args:
      counts: (C, C) images by true class (rows) and predicted class (columns), as of
        `confusion_counts`.
      names: Names of the C classes.
    """
    right, total = int(counts.trace()), int(counts.sum())
    text = f"rows: true class, columns: predicted; {right:,} of {total:,} images are right"
    num_classes = len(names)
    chosen = np.arange(num_classes)
    if num_classes > MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
        text += f"\nthe {MOST_CLASSES} of {num_classes:,} classes with the most mistakes"
    shown = counts[chosen][:, chosen].toarray()
    labels = [plain_text(_short(names[i])) for i in chosen.tolist()]
    side, name = _CELL * max(len(chosen), 6), _LETTER * max(map(len, labels)) + 0.15
    width = max(side, 6 - name - _SIDE)
    margins = Margins(_TOP, name + 0.1, _SIDE + name, _SIDE + width - side)
    figure, [[axes]] = place_panels([0], [0], (side, side), margins)
    shares = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=MEDIUM)
    axes.set_yticks(range(len(labels)), labels, fontsize=MEDIUM)
    axes.tick_params(length=0)
    for (row, column), count in np.ndenumerate(shown):
        if count:
            color = "white" if shares[row, column] > 0.5 else "0.15"
            style = {"ha": "center", "va": "center", "fontsize": SMALL, "color": color}
            axes.text(column, row, f"{count}", **style)
    headline(figure, _SIDE, "Confusion matrix", text)
    return figure


def mistakes_figure(
    images: Float[Array, "N H W 3"],
    classes: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, " N"],
    names: Sequence[str],
) -> Figure:
    """Draws wrongly classified images with what they are and what they were taken for.

    Args:
      images: (N, H, W, 3) in [-1, 1].
      classes: (N,) their classes.
      predicted: (N,) what they were taken for.
      probabilities: (N,) of the predicted classes.
      names: Names of the C classes.
    """
    titles = [
        f"{_short(names[int(taken)])} {probability:.0%}\nis {_short(names[int(label)])}"
        for label, taken, probability in zip(classes, predicted, probabilities, strict=True)
    ]
    text = "wrong with the highest probability" if titles else "every image is right"
    return images_figure(images, titles, "Worst mistakes", text)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
