"""The picture that a run ends with: how the experts share the patches of two views."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vmoe_prc.alignment import match_patches, view1_from_view0
from vmoe_prc.analysis.panels import save_figure
from vmoe_prc.analysis.plots import routing_pairs_figure
from vmoe_prc.train_step import merge_views


def save_final_picture(
    model: nn.Module,
    params: Any,
    batch: Mapping[str, np.ndarray],
    path: str | PathLike,
    num_images: int = 3,
) -> None:
    """Draws the first images of a batch of two views, routed by the last MoE block.

    Args:
      model: The model, with `deterministic=True`.
      params: Its parameters.
      batch: `image` (B, 2, H, W, 3), `labels` (B, classes), `view_from_image`
        (B, 2, 3, 3) and `mask` (B,).
      path: The PNG to write.
      num_images: How many images to draw.
    """

    @jax.jit
    def route(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        _, routings = model.apply({"params": params}, images)
        pairs = match_patches(
            view1_from_view0(batch["view_from_image"]),
            batch["image"].shape[2:4],
            tuple(model.patch_size),
            class_token=model.classifier == "token",
        )
        first = {block: routing.experts[..., 0] for block, routing in routings.items()}
        return first, pairs

    first, pairs = jax.device_get(route(params, dict(batch)))
    if not first:
        return
    block = list(first)[-1]
    num_pairs = batch["image"].shape[0]
    experts = first[block].reshape(num_pairs, 2, -1)  # (B, 2, T)
    shown = np.flatnonzero(batch["mask"])[:num_images]
    figure = routing_pairs_figure(
        batch["image"][shown],
        experts[shown],
        pairs[shown],
        model.patch_size[0],
        num_experts=model.encoder["moe"]["num_experts"],
        class_token=model.classifier == "token",
        block=block,
        labels=[str(label) for label in np.argmax(batch["labels"][shown], axis=-1)],
    )
    save_figure(figure, path)
