"""Batches of one or two views: merged for the model, and their patches matched."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.alignment import match_patches, view1_from_view0
from vmoe_prc.arrays import Array

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Array]


def merge_views(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Flattens B pairs of views to 2B images for the model; the views of an image are adjacent.

    Args:
      images: (B, H, W, 3), which is returned as it is, or (B, 2, H, W, 3).
      labels: (B, classes).
    """
    if images.ndim == 4:
        return images, labels
    return images.reshape(-1, *images.shape[2:]), jnp.repeat(labels, 2, axis=0)


def by_image(values: Array, num_images: int) -> Array:
    """Reshapes values of tokens from groups (G, S, ...) to images (N, T, ...)."""
    return values.reshape(num_images, -1, *values.shape[2:])


def match_views(model: nn.Module, batch: Batch, pair_class_tokens: bool = False) -> Array:
    """Pairs the tokens of the two views of a batch, (B, X, 2); see `match_patches`."""
    height, width = batch["image"].shape[2:4]
    return match_patches(
        view1_from_view0(batch["view_from_image"]),
        (height, width),
        tuple(model.patch_size),
        class_token=model.classifier == "token",
        pair_class_tokens=pair_class_tokens,
    )
