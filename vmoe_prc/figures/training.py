"""The figure of routing that a run draws at each evaluation and at its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from matplotlib.figure import Figure

from vmoe_prc.arrays import Array
from vmoe_prc.config.metric_names import block_order
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator, Result
from vmoe_prc.figures.panels import class_titles, to_display
from vmoe_prc.figures.routing_maps import PatchRouting, routing_map_figure
from vmoe_prc.figures.view_pairs import routing_pairs_figure
from vmoe_prc.models import apply_model
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import main_class
from vmoe_prc.steps.views import by_image, match_views, merge_views

TrainingPicture = Callable[[Any, Mapping[str, Array]], Callable[[], Figure] | None]


@EVALUATORS.register("routing_picture")
def routing_picture_evaluator(context: EvaluationContext) -> Evaluator:
    """Draws `routing` of a split with two views, or else with one view."""
    splits = sorted(context.splits.values(), key=lambda split: split.spec["image"].ndim != 5)
    if not splits:
        return lambda params: {}
    picture = make_training_picture(
        context.model,
        sharding=replicated(context.mesh),
        value_range=splits[0].value_range,
        class_names=splits[0].class_names,
    )

    def run(params: Any) -> dict[str, Result]:
        draw = picture(params, next(splits[0].batches()))
        return {"routing": draw} if draw else {}

    return run


def make_training_picture(
    model: nn.Module,
    num_images: int = 3,
    sharding: NamedSharding | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    class_names: Sequence[str] | None = None,
) -> TrainingPicture:
    """Builds the function (params, batch) that routes the first images of a batch.

    With two views the last MoE block is shown, with one view all of them.

    Args:
      model: The model, with `deterministic=True`.
      num_images: How many images to draw.
      sharding: Sharding of what is drawn, by which every process has all of it; None where
        there is one device.
      value_range: (low, high) of the pixels of the images.
      class_names: Names of the classes, None if they are unknown.

    Returns:
      A function of the parameters and a batch: `image` (B, 2, H, W, 3) or (B, H, W, 3),
      `labels` (B, classes), `mask` (B,) and with two views `view_from_image` (B, 2, 3, 3).
      All processes call it, with a global batch. It returns a function that draws the
      figure, for process 0 to call, or None if the model has no experts.
    """

    def route(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        _, routings = apply_model(model, params, images)
        # Sorting is stable: the first rows that are images.
        shown = jnp.argsort(~batch["mask"])[:num_images]
        drawn = {"image": batch["image"], "label": main_class(batch["labels"])}
        if batch["image"].ndim == 5:
            drawn["pairs"] = match_views(model, batch)

        def of_images(values):  # (G, S, K) -> (B, 2, T, K) or (B, T, K)
            tokens = by_image(values, len(images))
            return tokens.reshape(*batch["image"].shape[:-3], *tokens.shape[1:])

        drawn["blocks"] = {
            block: {"experts": of_images(r.experts), "kept": of_images(r.kept)}
            for block, r in routings.items()
        }
        drawn = jax.tree.map(lambda x: x[shown], drawn)
        return drawn | {"mask": batch["mask"][shown]}

    route = jax.jit(route, out_shardings=sharding)

    def picture(params, batch):
        drawn = jax.device_get(route(params, dict(batch)))
        mask = drawn.pop("mask")
        drawn = jax.tree.map(lambda x: x[mask], drawn)
        drawn["image"] = to_display(drawn["image"], value_range)
        drawn["titles"] = class_titles(drawn.pop("label"), class_names)
        # By number: a jitted function returns them by name, encoderblock_11 before encoderblock_3.
        drawn["blocks"] = {b: drawn["blocks"][b] for b in sorted(drawn["blocks"], key=block_order)}
        draw = _draw_pairs if "pairs" in drawn else _draw_map
        return (lambda: draw(model, drawn)) if drawn["blocks"] else None

    return picture


def _draw_pairs(model: nn.Module, drawn: Mapping[str, Any]) -> Figure:
    block, routing = list(drawn["blocks"].items())[-1]
    return routing_pairs_figure(
        drawn["image"],
        routing["experts"][..., 0],
        drawn["pairs"],
        tuple(model.patch_size),
        num_experts=model.encoder["moe"]["num_experts"],
        class_token=model.classifier == "token",
        block=block,
        labels=drawn["titles"],
    )


def _draw_map(model: nn.Module, drawn: Mapping[str, Any]) -> Figure:
    size = zip(drawn["image"].shape[1:3], model.patch_size, strict=True)
    grid = tuple(side // patch for side, patch in size)
    routings = {
        block: PatchRouting.of_tokens(
            routing["experts"],
            routing["kept"],
            grid,
            num_experts=model.encoder["moe"]["num_experts"],
        )
        for block, routing in drawn["blocks"].items()
    }
    return routing_map_figure(drawn["image"], routings, labels=drawn["titles"])
