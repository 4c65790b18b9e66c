"""Quality of the predicted probabilities: log-likelihood, Brier score and calibration error."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import is_correct, is_labelled
from vmoe_prc.steps.views import merge_views


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options of `calibration`."""

    split: str = option("test", "Split of `config.dataset` to evaluate.")
    num_bins: int = option(15, "Bins of equal width of the largest probability.", minimum=1)


def calibration_sums(
    logits: Float[Array, "N classes"],
    labels: Float[Array, "N classes"],
    mask: Bool[Array, " N"],
    num_bins: int,
) -> dict[str, jax.Array]:
    """Sums over the labelled images of a batch; sums of several batches are added.

    Args:
      logits: (N, classes); their softmax are the probabilities.
      labels: (N, classes) one-hot; of several labels each has an equal share.
      mask: (N,), False for images that do not count.
      num_bins: Bins of the largest probability, p.

    Returns:
      `images`, `nll` and `brier`, and by bin `count`, `confidence` (sum of p) and `correct`.
    """
    counted = mask & is_labelled(labels)
    shares = labels / jnp.maximum(labels.sum(-1, keepdims=True), 1)
    logs = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(logs)
    largest = jnp.max(probabilities, axis=-1)
    # A bin has its upper bound: (0, 1/B], (1/B, 2/B], …
    bins = jnp.clip(jnp.ceil(largest * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    weights = counted.astype(jnp.float32)

    def by_bin(values):
        return jnp.zeros(num_bins).at[bins].add(jnp.where(counted, values, 0))

    # A class without a label may have probability 0.
    nll = -jnp.sum(jnp.where(shares > 0, shares * logs, 0), axis=-1)
    brier = jnp.sum(jnp.square(probabilities - shares), axis=-1)
    return {
        "images": weights.sum(),
        "nll": jnp.sum(jnp.where(counted, nll, 0)),
        "brier": jnp.sum(jnp.where(counted, brier, 0)),
        "count": by_bin(weights),
        "confidence": by_bin(largest),
        "correct": by_bin(is_correct(logits, labels).astype(jnp.float32)),
    }


@EVALUATORS.register("calibration", options=CalibrationOptions)
def calibration(context: EvaluationContext, *, split: str, num_bins: int) -> Evaluator:
    """Returns a function from parameters to `nll`, `brier` and `ece`.

    `ece` is the expected calibration error (Guo et al., arXiv 1706.04599): the mean over images of
    the distance between confidence and accuracy of their bin. Probabilities are the softmax of the
    logits; an ensemble has the mean probabilities of its members.

    Raises:
      ConfigError: If there is no such split.
    """
    if split not in context.splits:
        expected = f"expected one of {', '.join(context.splits)}"
        raise ConfigError("config.evaluators", split, expected, nearest(split, context.splits))

    @functools.partial(jax.jit, out_shardings=replicated(context.mesh))
    def sums(params: Any, batch):
        images, labels = merge_views(batch["image"], batch["labels"])
        mask = jnp.repeat(batch["mask"], len(images) // len(batch["mask"]))
        logits, _ = context.model.apply({"params": params}, images, mask)
        return calibration_sums(logits, labels, mask, num_bins)

    def evaluate(params):
        total = None
        for batch in context.splits[split].batches():
            part = sums(params, batch)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return calibration_metrics(jax.device_get(total))

    return evaluate


def calibration_metrics(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Turns the sums of a split into `nll`, `brier` and `ece`; none of them without labels."""
    images = float(sums["images"])
    if not images:
        return {}
    gaps = np.abs(np.asarray(sums["confidence"]) - np.asarray(sums["correct"]))
    return {
        "nll": float(sums["nll"]) / images,
        "brier": float(sums["brier"]) / images,
        "ece": float(gaps.sum()) / images,
    }
