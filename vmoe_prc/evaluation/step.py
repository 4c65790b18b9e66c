"""One step of evaluation, as a pure function to be jitted."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Leaf
from vmoe_prc.evaluation.agreement import PairTotals, agreement_per_image
from vmoe_prc.losses import classification_loss
from vmoe_prc.models import apply_model
from vmoe_prc.models.routing import Routing
from vmoe_prc.steps.accuracy import is_correct, is_labelled
from vmoe_prc.steps.views import Batch, by_image, match_views, merge_views


@flax.struct.dataclass
class RoutingSums:
    """Routing of one block over the images that count.

    Attributes:
      choices: Choices of experts, float32.
      dropped: Choices that found their expert full, float32.
      load: (E,) float32, choices that each expert kept.
    """

    choices: Leaf
    dropped: Leaf
    load: Leaf


@flax.struct.dataclass
class EvalSums:
    """Sums over the images of a batch; sums of several batches are added.

    With two views per image each view counts as an image.

    Attributes:
      images: Images, float32.
      labelled: Images with at least one label, float32.
      loss: Classification loss of all images.
      labelled_loss: Classification loss of the labelled images.
      correct: Images whose prediction is one of their labels, float32.
      routing: By block.
    """

    images: Leaf
    labelled: Leaf
    loss: Leaf
    labelled_loss: Leaf
    correct: Leaf
    routing: dict[str, RoutingSums]


@flax.struct.dataclass
class PairSums:
    """Agreement of the two views of each image of a batch.

    Attributes:
      mask: (B,) bool, False for images that do not count.
      agreement: Sums over the pairs of each image by block, (B, ...); NaN where gates are not
        finite.
    """

    mask: Leaf
    agreement: dict[str, PairTotals]


EvalStep = Callable[[Any, Batch], tuple[EvalSums, PairSums | None]]


def make_eval_step(model: nn.Module, loss: Mapping[str, Any]) -> EvalStep:
    """Builds the function (params, batch) -> (sums, pair sums) of one batch of evaluation.

    A batch is as in training, with `mask` (B,) bool: rows with False count nowhere and take no
    place in an expert. There are pair sums with two views only. `splits.evaluate` turns all of
    it into metrics.

    Args:
      model: The model, with `deterministic=True`.
      loss: Options of `losses.classification_loss`.
    """

    def eval_step(params: Any, batch: Batch) -> tuple[EvalSums, PairSums | None]:
        two_views = batch["image"].ndim == 5
        images, labels = merge_views(batch["image"], batch["labels"])
        mask = jnp.repeat(batch["mask"], 2) if two_views else batch["mask"]
        logits, routings = apply_model(model, params, images, mask)
        losses = classification_loss(logits, labels, **loss)
        labelled = mask & is_labelled(labels)

        def total(values, counted):
            return jnp.sum(jnp.where(counted, values, 0), dtype=jnp.float32)

        sums = EvalSums(
            images=total(1, mask),
            labelled=total(1, labelled),
            loss=total(losses, mask),
            labelled_loss=total(losses, labelled),
            correct=total(is_correct(logits, labels), labelled),
            routing={block: _routing_sums(routing, mask) for block, routing in routings.items()},
        )
        if not two_views:
            return sums, None
        pairs = match_views(model, batch)
        agreement = {block: _agreement(routing, pairs) for block, routing in routings.items()}
        return sums, PairSums(batch["mask"], agreement)

    return eval_step


def _routing_sums(routing: Routing, mask: jax.Array) -> RoutingSums:
    experts, kept, selected = (  # (N, T, K)
        by_image(x, len(mask)) for x in (routing.experts, routing.kept, routing.selected)
    )
    kept, selected = (x & mask[:, None, None] for x in (kept, selected))
    chosen = experts[..., None] == jnp.arange(routing.gates.shape[-1])
    num_choices = jnp.sum(selected)
    return RoutingSums(
        choices=num_choices.astype(jnp.float32),
        dropped=(num_choices - jnp.sum(kept)).astype(jnp.float32),
        load=jnp.sum(chosen & kept[..., None], axis=(0, 1, 2), dtype=jnp.float32),
    )


def _agreement(routing: Routing, pairs: Array) -> PairTotals:
    """Sums the agreement of one block over the matched pairs of each image."""
    num_views = 2 * len(pairs)
    experts = by_image(routing.experts[..., : routing.num_selected_experts], num_views)
    views = experts.reshape(-1, 2, *experts.shape[1:])  # (B, 2, T, K)
    sums = agreement_per_image(views, pairs, routing.gates.shape[-1])
    # NaN gates choose the same experts everywhere: no agreement, but divergence.
    finite = jnp.isfinite(by_image(routing.gates, num_views).sum((1, 2)))
    finite = finite.reshape(-1, 2).all(axis=1)  # (B,)
    return jax.tree.map(
        lambda x: jnp.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan), sums
    )
