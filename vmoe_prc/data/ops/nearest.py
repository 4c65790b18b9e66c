"""Geometric ops that take the nearest pixel, as the RandAugment of the released programs."""

import functools

import cv2
import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Int16, UInt8

from vmoe_prc.data.ops import affine

GRAY = 128
# From coordinates that are 0 at the first pixel's centre, as TensorFlow's are, to coordinates of
# `affine`, and back.
_FROM_CENTRES = affine.translation_matrix(0.5, 0.5)
_TO_CENTRES = affine.translation_matrix(-0.5, -0.5)
# A place beyond the edges.
_OUTSIDE = -1
# Larger views are moved by TensorFlow: their maps would fill the memory, and would seldom be used
# again. A map of this many pixels has 1 MB, and as many maps as these are kept.
_MAX_MAPPED, _MAX_MAPS = 512 * 512, 64
# OpenCV's borders have no more.
_MAX_CHANNELS = 4
_NO_FRACTIONS = np.empty(0)


def move_nearest(
    view: UInt8[np.ndarray, "h w C"], new_from_old: affine.Matrix, border: str
) -> UInt8[np.ndarray, "h w C"]:
    """Returns a view of the same size, each of whose pixels is one pixel of the old view.

    Args:
      view: The pixels.
      new_from_old: Affine map of coordinates, see `affine`.
      border: Pixels beyond the edges: 'constant' for gray, 'reflect' for the mirrored view.
    """
    height, width, channels = view.shape
    matrix = tuple(new_from_old.ravel().tolist())
    if height * width > _MAX_MAPPED or channels > _MAX_CHANNELS:
        return _project(view, matrix, border, GRAY)
    return cv2.remap(
        view,
        _places(height, width, matrix, border),
        _NO_FRACTIONS,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(GRAY,) * channels,
    )


@functools.lru_cache(_MAX_MAPS)
def _places(
    height: int, width: int, new_from_old: tuple[float, ...], border: str
) -> Int16[np.ndarray, "h w 2"]:
    """Returns (x, y) in the old view of each new pixel; `_OUTSIDE` where it is gray.

    TensorFlow moves an image of coordinates: other arithmetic would take another pixel here and
    there.
    """
    rows, cols = np.indices((height, width), np.float32)
    image = np.stack([cols, rows], axis=-1)
    return _project(image, new_from_old, border, _OUTSIDE).astype(np.int16)


def _project(
    image: UInt8[np.ndarray, "h w C"] | Float32[np.ndarray, "h w C"],
    new_from_old: tuple[float, ...],
    border: str,
    outside: float,
) -> np.ndarray:
    # TensorFlow's map is of (x, y), from the new view to the old one.
    old_from_new = _TO_CENTRES @ np.linalg.inv(np.reshape(new_from_old, (3, 3))) @ _FROM_CENTRES
    (a, b, row), (c, d, col) = old_from_new[:2]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=np.array([[d, c, col, b, a, row, 0, 0]], np.float32),
        output_shape=image.shape[:2],
        fill_value=float(outside),
        fill_mode=border.upper(),
        interpolation="NEAREST",
    )
    return moved.numpy()[0]
