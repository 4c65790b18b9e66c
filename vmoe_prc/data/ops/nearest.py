"""Geometric ops that take the nearest pixel, as the RandAugment of the released programs."""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from vmoe_prc.data.ops import affine

GRAY = 128
# From coordinates that are 0 at the first pixel's centre, as TensorFlow's are, to those of
# `affine`, and back.
_FROM_CENTRES = affine.translation_matrix(0.5, 0.5)
_TO_CENTRES = affine.translation_matrix(-0.5, -0.5)


def move_nearest(
    view: UInt8[np.ndarray, "h w C"], new_from_old: affine.Matrix, border: str
) -> UInt8[np.ndarray, "h w C"]:
    """Returns a view of the same size, each of whose pixels is one pixel of the old view.

    Args:
      view: The pixels.
      new_from_old: Affine map of coordinates, see `affine`.
      border: What is seen beyond the edges: 'constant' for gray, 'reflect' for the mirrored view.
    """
    # TensorFlow's map is of (x, y), from the new view to the old one.
    old_from_new = _TO_CENTRES @ np.linalg.inv(new_from_old) @ _FROM_CENTRES
    (a, b, row), (c, d, col) = old_from_new[:2]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=view[None],
        transforms=np.array([[d, c, col, b, a, row, 0, 0]], np.float32),
        output_shape=view.shape[:2],
        fill_value=float(GRAY),
        fill_mode=border.upper(),
        interpolation="NEAREST",
    )
    return moved[0].numpy()
