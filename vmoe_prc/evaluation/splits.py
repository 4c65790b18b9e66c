"""Evaluation of whole splits: every image counts once."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vmoe_prc.config.metric_names import MetricName, under
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.agreement import ALL_BLOCKS, PairTotals, agreement_intervals
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator
from vmoe_prc.evaluation.step import EvalStep, EvalSums, PairSums, make_eval_step
from vmoe_prc.runtime.memory import check_program_fits
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.views import Batch

# By block, sums over the pairs of each image.
AgreementSums = dict[str, PairTotals]


@EVALUATORS.register("splits")
def split_evaluator(context: EvaluationContext) -> Evaluator:
    """Evaluates every split; metrics are named `{split}/{metric}`, see `finish_metrics`."""
    loss = context.config.loss.to_dict()
    step = jax.jit(make_eval_step(context.model, loss), out_shardings=replicated(context.mesh))
    fitting: set[str] = set()  # Splits whose compiled step fits the memory.

    def run(params: Any) -> dict[str, float]:
        results = {}
        for name, split in context.splits.items():
            unlabelled = context.config.dataset[name].unlabelled
            metrics = evaluate(step, params, checked(name, params, split), unlabelled)
            results |= under(name, metrics)
        return results

    def checked(name: str, params: Any, split: Any) -> Iterator[Batch]:
        for batch in split.batches():
            if name not in fitting:
                check_program_fits(step, (params, batch), context.mesh.local_devices)
                fitting.add(name)
            yield batch

    return run


def evaluate(
    eval_step: EvalStep,
    params: Any,
    batches: Iterable[Batch],
    unlabelled: str = "left_out",
) -> dict[str, float]:
    """Runs the jitted evaluation step over all batches and forms the metrics.

    Args:
      eval_step: Jitted function of `step.make_eval_step`, whose results every
        process has.
      params: Parameters of the model.
      batches: Global batches with a `mask`.
      unlabelled: See `finish_metrics`.

    Returns:
      Metrics as `finish_metrics` names them.

    Raises:
      ValueError: If there is no image at all.
    """
    return finish_metrics(*sum_batches(eval_step, params, batches), unlabelled)


def sum_batches(
    eval_step: EvalStep,
    params: Any,
    batches: Iterable[Batch],
) -> tuple[EvalSums, AgreementSums]:
    """Runs the jitted evaluation step over all batches, for `finish_metrics`.

    Returns:
      Sums over the split, and with two views the agreement of each of its N images.

    Raises:
      ValueError: If there is no image at all.
    """
    total, parts = None, []
    for batch in batches:
        sums, pair_sums = eval_step(params, batch)
        # Added on the device: the host stays free to prepare the next batch.
        total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
        parts.append(pair_sums)
    if total is None:
        raise ValueError("the split to evaluate has no images")
    parts: list[PairSums | None] = jax.device_get(parts)
    if parts[0] is None:
        return jax.device_get(total), {}
    images = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return jax.device_get(total), jax.tree.map(lambda x: x[images.mask], images.agreement)


def finish_metrics(
    sums: EvalSums, agreement: AgreementSums, unlabelled: str = "left_out"
) -> dict[str, float]:
    """Turns sums over a split into metrics.

    Args:
      sums: Sums of `make_eval_step`'s function over the batches.
      agreement: Agreement of each image, empty with one view.
      unlabelled: Whether images without a label are 'left_out' of accuracy and loss, or 'wrong'.

    Returns:
      `images`; `accuracy` and `loss` over the images that they count, neither of them without any;
      per block `{block}/dropped`, the share of choices
      that found their expert full, `{block}/load/{e}`, the share of the kept choices that
      went to expert e, and with two views the agreement metrics (top1, top2,
      top2_unordered, overlap) and their parts (chance, image, place, kappa, kappa_place; for
      sets with the prefix `overlap_`), see `decomposition`. These are also given over all
      blocks without a prefix, with the bounds of a 95% interval over images: `top1_low`,
      `top1_high`.
    """
    metrics = {MetricName("images"): float(sums.images)}
    counted, loss = (
        (sums.images, sums.loss) if unlabelled == "wrong" else (sums.labelled, sums.labelled_loss)
    )
    if counted > 0:
        metrics[MetricName("accuracy")] = float(sums.correct) / float(counted)
        metrics[MetricName("loss")] = float(loss) / float(counted)
    for block, routing in sums.routing.items():
        load = np.asarray(routing.load, np.float64)
        dropped = float(routing.dropped / routing.choices)
        metrics[MetricName("dropped", block=block)] = dropped
        for expert, share in enumerate(load / max(load.sum(), 1)):
            metrics[MetricName("load", block=block, expert=expert)] = float(share)
    for block, intervals in (agreement_intervals(agreement) if agreement else {}).items():
        for measure, interval in intervals.items():
            if block != ALL_BLOCKS:
                metrics[MetricName(measure, block=block)] = interval.value
            else:
                metrics[MetricName(measure)] = interval.value
                metrics[MetricName(measure, bound="low")] = interval.low
                metrics[MetricName(measure, bound="high")] = interval.high
    return {str(name): value for name, value in metrics.items()}
