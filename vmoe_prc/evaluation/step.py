"""One step of evaluation, as a pure function to be jitted."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.evaluation.agreement import agreement_per_image
from vmoe_prc.losses import classification_loss
from vmoe_prc.models.routing import Routing
from vmoe_prc.steps.views import Batch, Metrics, by_image, match_views, merge_views

EvalStep = Callable[[Any, Batch], tuple[Metrics, Metrics]]


def make_eval_step(model: nn.Module, loss: Mapping[str, Any]) -> EvalStep:
    """Builds the function (params, batch) -> (sums, per image) of one batch of evaluation.

    A batch is as in training, with `mask` (B,) bool: rows with False count nowhere. With
    two views there is also the agreement of each image, `{block}/{metric}` (B,), with the
    `mask`. `evaluate.evaluate` turns all of it into metrics.

    Args:
      model: The model, with `deterministic=True`.
      loss: Options of `losses.classification_loss`.
    """

    def eval_step(params: Any, batch: Batch) -> tuple[Metrics, Metrics]:
        two_views = batch["image"].ndim == 5
        images, labels = merge_views(batch["image"], batch["labels"])
        mask = jnp.repeat(batch["mask"], 2) if two_views else batch["mask"]
        logits, routings = model.apply({"params": params}, images)
        losses = classification_loss(logits, labels, **loss)
        correct = jnp.argmax(logits, -1) == jnp.argmax(labels, -1)

        def total(values):
            return jnp.sum(jnp.where(mask, values, 0), dtype=jnp.float32)

        sums = {"images": total(1), "loss": total(losses), "accuracy": total(correct)}
        pairs = match_views(model, batch) if two_views else None
        per_image = {"mask": batch["mask"]} if two_views else {}
        for block, routing in routings.items():
            for name, value in _routing_sums(routing, mask).items():
                sums[f"{block}/{name}"] = value
            if two_views:
                experts = by_image(routing.experts, 2 * len(batch["mask"]))
                views = experts.reshape(-1, 2, *experts.shape[1:])  # (B, 2, T, K)
                sums_per_image = agreement_per_image(views, pairs, routing.gates.shape[-1])
                # NaN gates choose the same experts everywhere: no agreement, but divergence.
                finite = jnp.isfinite(by_image(routing.gates, len(mask)).sum((1, 2)))
                finite = finite.reshape(-1, 2).all(axis=1)  # (B,)
                for name, value in sums_per_image.items():
                    valid = finite.reshape(-1, *[1] * (value.ndim - 1))
                    per_image[f"{block}/{name}"] = jnp.where(valid, value, jnp.nan)
        return sums, per_image

    return eval_step


def _routing_sums(routing: Routing, mask: jax.Array) -> Metrics:
    """Sums of one block over the images that count; `load` is (E,), the rest scalar."""
    experts, kept = (by_image(x, len(mask)) for x in (routing.experts, routing.kept))  # (N, T, K)
    kept &= mask[:, None, None]
    chosen = experts[..., None] == jnp.arange(routing.gates.shape[-1])
    num_choices = jnp.sum(mask) * experts.shape[1] * experts.shape[2]
    return {
        "choices": num_choices.astype(jnp.float32),
        "dropped": (num_choices - jnp.sum(kept)).astype(jnp.float32),
        "load": jnp.sum(chosen & kept[..., None], axis=(0, 1, 2), dtype=jnp.float32),
    }
