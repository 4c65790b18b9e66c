"""The picture that a run ends with: how the experts share the patches of two views."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vmoe_prc.analysis.panels import save_figure
from vmoe_prc.analysis.plots import routing_pairs_figure
from vmoe_prc.arrays import Array
from vmoe_prc.train_step import match_views, merge_views


def save_final_picture(
    model: nn.Module,
    params: Any,
    batch: Mapping[str, Array],
    path: str | PathLike | None,
    num_images: int = 3,
) -> None:
    """Draws the first images of a batch of two views, routed by the last MoE block.

    Args:
      model: The model, with `deterministic=True`.
      params: Its parameters.
      batch: `image` (B, 2, H, W, 3), `labels` (B, classes), `view_from_image`
        (B, 2, 3, 3) and `mask` (B,). With several processes a global batch.
      path: The PNG to write; None in a process that only takes part in the routing.
      num_images: How many images to draw.
    """

    def route(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        _, routings = model.apply({"params": params}, images)
        if not routings:
            return None
        block, routing = list(routings.items())[-1]
        experts = routing.experts[..., 0].reshape(len(batch["mask"]), 2, -1)  # (B, 2, T)
        pairs = match_views(model, batch)
        # Sorting is stable: the first rows that are images.
        shown = jnp.argsort(~batch["mask"])[:num_images]
        drawn = (batch["image"], experts, pairs, jnp.argmax(batch["labels"], -1), batch["mask"])
        return {block: [x[shown] for x in drawn]}

    inside_mesh = not jax.sharding.get_abstract_mesh().empty
    shardings = {"out_shardings": PartitionSpec()} if inside_mesh else {}
    routed = jax.device_get(jax.jit(route, **shardings)(params, dict(batch)))
    if not routed or path is None:
        return
    [(block, drawn)] = routed.items()
    images, experts, pairs, labels, mask = drawn
    figure = routing_pairs_figure(
        images[mask],
        experts[mask],
        pairs[mask],
        model.patch_size[0],
        num_experts=model.encoder["moe"]["num_experts"],
        class_token=model.classifier == "token",
        block=block,
        labels=[str(label) for label in labels[mask]],
    )
    save_figure(figure, path)
