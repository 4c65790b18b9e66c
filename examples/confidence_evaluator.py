"""An evaluator of your own: how sure the model is of what it predicts."""

import dataclasses

import jax
import jax.numpy as jnp

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceOptions:
    """Options of `confidence`."""

    split: str = option("test", "Split of `config.dataset` to evaluate.")


@EVALUATORS.register("confidence", options=ConfidenceOptions)
def confidence(context: EvaluationContext, *, split: str) -> Evaluator:
    """Returns a function from parameters to the mean of the largest probability."""

    @jax.jit
    def sums(params, batch):
        logits, _ = context.model.apply({"params": params}, batch["image"])
        largest = jnp.max(jax.nn.softmax(logits), axis=-1)
        # Rows that fill up the last batch do not count.
        mask = batch["mask"]
        return jnp.sum(jnp.where(mask, largest, 0)), jnp.sum(mask)

    def evaluate(params):
        parts = [sums(params, batch) for batch in context.splits[split].batches()]
        total, count = map(sum, zip(*parts, strict=True))
        return {"mean": float(total / count)}

    return evaluate
