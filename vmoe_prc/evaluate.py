"""Evaluation of whole splits: every image counts once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vmoe_prc.arrays import Array
from vmoe_prc.train_step import Batch

AGREEMENT = ("top1", "top2", "top2_unordered", "overlap")


def evaluate(
    eval_step: Callable[[Any, Batch], Mapping[str, jax.Array]],
    params: Any,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Runs the jitted evaluation step over all batches and forms the metrics.

    Args:
      eval_step: Jitted function of `train_step.make_eval_step`.
      params: Parameters of the model.
      batches: Global batches with a `mask`.

    Returns:
      Metrics as `finish_metrics` names them.

    Raises:
      ValueError: If there is no image at all.
    """
    total = None
    for batch in batches:
        sums = eval_step(params, batch)
        # Added on the device: the host stays free to prepare the next batch.
        total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
    if total is None:
        raise ValueError("the split to evaluate has no images")
    return finish_metrics(jax.device_get(total))


def finish_metrics(sums: Mapping[str, Array]) -> dict[str, float]:
    """Turns sums over a split into metrics.

    Args:
      sums: Sums of `make_eval_step`'s function over the batches.

    Returns:
      `accuracy`, `loss` and `images`; per block `{block}/dropped`, the share of choices
      that found their expert full, `{block}/load/{e}`, the share of the kept choices that
      went to expert e, and with two views the agreement metrics (spec: top1, top2,
      top2_unordered, overlap), which are also given over all blocks without a prefix.
    """
    images = float(sums["images"])
    metrics = {
        "images": images,
        "accuracy": float(sums["accuracy"]) / images,
        "loss": float(sums["loss"]) / images,
    }
    blocks = [key.removesuffix("/choices") for key in sums if key.endswith("/choices")]
    for block in blocks:
        load = np.asarray(sums[f"{block}/load"], np.float64)
        metrics[f"{block}/dropped"] = float(sums[f"{block}/dropped"] / sums[f"{block}/choices"])
        for expert, share in enumerate(load / max(load.sum(), 1)):
            metrics[f"{block}/load/{expert}"] = float(share)
        for name in AGREEMENT:
            if f"{block}/{name}" in sums:
                pairs = max(float(sums[f"{block}/num_pairs"]), 1)
                metrics[f"{block}/{name}"] = float(sums[f"{block}/{name}"]) / pairs
    for name in AGREEMENT:
        values = [metrics[f"{b}/{name}"] for b in blocks if f"{b}/{name}" in metrics]
        if values:
            # Every block sees the same pairs, so the mean of means is the mean.
            metrics[name] = float(np.mean(values))
    return metrics
