"""The patch embedding as one matrix product.

Inside `jax.lax.scan` (microsteps, `study.ensemble`) XLA compiles the gradient of the kernel of a
strided convolution for CPUs into code that took a fifth of the step of a small model; elsewhere
both take the same time. Patches do not overlap, so that a product of the flattened patches with
the flattened kernel computes the same.
"""

from collections.abc import Sequence
from typing import Any

import jax

from vmoe_prc.arrays import Array, Float


def patch_products(
    images: Float[Array, "N H W C"],
    kernel: Float[Array, "P Q C D"],
    window_strides: Sequence[int],
    padding: Any,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """Multiplies patches that do not overlap with a kernel, for `nn.Conv.conv_general_dilated`.

    Args:
      images: (N, H, W, C) with sides that P and Q divide.
      kernel: (P, Q, C, D).
      window_strides: (P, Q).
      padding: No padding.
      precision: Precision of the product.
      preferred_element_type: dtype of the product.
      **options: Other arguments of `nn.Conv`, with its defaults.

    Returns:
      (N, H / P, W / Q, D) products, as of the convolution.
    """
    rows, cols, _, width = kernel.shape
    assert tuple(window_strides) == (rows, cols), "patches must not overlap"
    return jax.lax.dot_general(
        flat_patches(images, (rows, cols)),
        kernel.reshape(-1, width),
        (((3,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def flat_patches(
    images: Float[Array, "N H W C"], patch_size: tuple[int, int]
) -> Float[Array, "N rows cols PQC"]:
    """Cuts images into patches of (P, Q) pixels: (N, H / P, W / Q, P * Q * C)."""
    num_images, height, width, channels = images.shape
    rows, cols = patch_size
    patches = images.reshape(num_images, height // rows, rows, width // cols, cols, channels)
    patches = patches.swapaxes(2, 3)
    return patches.reshape(*patches.shape[:3], rows * cols * channels)
