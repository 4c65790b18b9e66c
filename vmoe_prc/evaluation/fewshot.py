"""Few-shot linear evaluation of frozen representations, as in V-MoE (arXiv 2106.05974).

A ridge regression from the representations of a few images per class to their classes; the
strength of its regularisation is chosen on a validation split.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.config import fewshot_sections
from vmoe_prc.config.metric_names import FEWSHOT, MetricName, under
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.errors import RunError
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator
from vmoe_prc.models import apply_model
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.runtime.processes import share_out
from vmoe_prc.steps.views import Batch

RepresentationStep = Callable[[Any, Batch], tuple[Array, Array, Array]]
# Representations and classes of a split.
Examples = tuple[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]]


@EVALUATORS.register("fewshot")
def fewshot_evaluator(
    context: EvaluationContext, *, shots: Sequence[int], l2_regs: Sequence[float], **data: Any
) -> Evaluator:
    """Classifies each data set from few shots; metrics are named `fewshot/{name}/{shots}shot`.

    Args:
      context: The model and the mesh.
      shots: Numbers of training images per class.
      l2_regs: Strengths of the regularisation to choose from.
      **data: The other options of `config.fewshot`, which select the data.
    """
    splits = {
        name: {
            split: context.open_split(section, f"config.fewshot.datasets.{name}", "label")
            for split, section in sections.items()
        }
        for name, sections in fewshot_sections(data).items()
    }
    # The processes share out the regressions; each is fitted on all of the representations.
    step = jax.jit(make_representation_step(context.model), out_shardings=replicated(context.mesh))

    def run(params: Any) -> dict[str, float]:
        results = {}
        for name, parts in splits.items():
            examples = {
                part: represent(step, params, split.batches()) for part, split in parts.items()
            }
            accuracies = fewshot_accuracies(examples, shots, l2_regs)
            results |= under(name, accuracies)
        return under(FEWSHOT, results)

    return run


def make_representation_step(model: nn.Module) -> RepresentationStep:
    """Builds the function (params, batch) -> (representations, classes, mask) to be jitted.

    Args:
      model: The model, with `deterministic=True`; what its head would see is the
        representation, (B, D) float32.
    """
    headless = model.clone(num_classes=None)

    def step(params: Any, batch: Batch) -> tuple[Array, Array, Array]:
        representations, _ = apply_model(headless, params, batch["image"])
        return representations.astype(jnp.float32), batch["label"], batch["mask"]

    return step


def represent(step: RepresentationStep, params: Any, batches: Iterable[Batch]) -> Examples:
    """Computes the representations of a split.

    Args:
      step: Jitted function of `make_representation_step`, whose results every process has.
      params: Parameters of the model.
      batches: Global batches with `image`, `label` (B,) and `mask` (B,).

    Returns:
      (N, D) float32 and (N,) integers of the N images that have a label, on the host.

    Raises:
      RunError: If no image has a label.
    """
    parts = []
    for batch in batches:
        representations, labels, mask = jax.device_get(step(params, batch))
        mask = mask & (labels >= 0)
        parts.append((representations[mask], labels[mask]))
    features, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    if not len(labels):
        raise RunError("few-shot evaluation: none of the images of a split has a label")
    return features, labels


def fewshot_accuracies(
    examples: Mapping[str, Examples],
    shots: Sequence[int],
    l2_regs: Sequence[float],
    seed: int = 0,
) -> dict[str, float]:
    """Fits and tests a ridge regression for each number of shots.

    With several processes all of them call it, with the same examples; each fits and tests some
    of the regressions. Representations are standardised by the training examples; the targets
    are 1 for the class of an image and -1 for the others.

    Args:
      examples: Representations and classes of the splits 'train', 'val' and 'test'.
      shots: Numbers of training images per class; a class that has fewer gives all of its images.
      l2_regs: Strengths of the regularisation to choose from; the strength with
        the highest validation accuracy is used, the largest of equal ones.
      seed: Seed of the choice of images.

    Returns:
      Per number n of shots: `{n}shot`, the test accuracy in [0, 1], and `{n}shot_l2`, the
      strength used.
    """
    features, labels = examples["train"]
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    strongest_first = sorted(l2_regs, reverse=True)

    @functools.cache
    def fit(shot: int, l2: float) -> Callable[[Array], np.ndarray]:
        chosen = np.concatenate([indices[:shot] for indices in by_class])
        return _fit(features[chosen], labels[chosen], l2)

    tasks = [(shot, l2) for shot in shots for l2 in strongest_first]
    validation = share_out([lambda t=t: _accuracy(fit(*t), examples["val"]) for t in tasks])
    table = np.reshape(validation, (len(shots), len(strongest_first)))
    best = {s: strongest_first[i] for s, i in zip(shots, table.argmax(axis=1), strict=True)}
    # In the same order, so that each process tests what it has fitted.
    test = share_out(
        [
            lambda t=t: _accuracy(fit(*t), examples["test"]) if t[1] == best[t[0]] else np.nan
            for t in tasks
        ]
    )
    accuracies = dict(zip(tasks, test, strict=True))
    results = {}
    for shot, l2 in best.items():
        results[MetricName("shot", shots=shot)] = accuracies[shot, l2]
        results[MetricName("shot_l2", shots=shot)] = float(l2)
    return {str(name): value for name, value in results.items()}


def _fit(features: Array, labels: Array, l2: float) -> Callable[[Array], np.ndarray]:
    """Returns the fitted function from representations to classes."""
    # Imported here: only few-shot evaluation needs scikit-learn.
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    classes, indices = np.unique(labels, return_inverse=True)
    scaler = StandardScaler().fit(features.astype(np.float64))
    targets = 2.0 * np.eye(len(classes))[indices] - 1.0
    ridge = Ridge(alpha=l2).fit(scaler.transform(features.astype(np.float64)), targets)
    return lambda x: classes[
        np.argmax(ridge.predict(scaler.transform(x.astype(np.float64))), axis=-1)
    ]


def _accuracy(predict: Callable[[Array], np.ndarray], examples: Examples) -> float:
    features, labels = examples
    return float(np.mean(predict(features) == labels))
