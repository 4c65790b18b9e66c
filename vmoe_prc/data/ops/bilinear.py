"""Bilinear resizing with the values of TensorFlow's kernel, bit for bit: NumPy and OpenCV.

The released programs drop the fractions of its results. Sums in another order, as OpenCV's or those
of fused multiplications, would give 99.99999 where it gives 100.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int, Shaped

# Images differ in size; all lengths of a data set's crops fit in.
_MAX_LENGTHS = 2048


class _Neighbours(NamedTuple):
    """The two old pixels of each new one, along one axis, and the weight of the second.

    Attributes:
      used: Indices of the old pixels that are a neighbour, in their order.
      low: Index in `used` of the first neighbour of each new pixel.
      high: Index in `used` of the second.
      weight: Weight of the second.
    """

    used: Int[np.ndarray, "used"]
    low: Int[np.ndarray, "new"]
    high: Int[np.ndarray, "new"]
    weight: Float32[np.ndarray, "new"]


def resize_bilinear(
    image: Shaped[np.ndarray, "H W C"], size: tuple[int, int]
) -> Float32[np.ndarray, "h w C"]:
    """Computes `tf.image.resize(image, size)`, without antialiasing.

    Args:
      image: The pixels.
      size: (height, width) of the result.
    """
    rows, cols = map(_neighbours, image.shape, size)
    # Rows in one piece: broadcasting over three channels would be several times as slow.
    left, right = (
        x.reshape(len(x), -1).astype(np.float32) for x in _columns(image[rows.used], cols)
    )
    wide = _between(left, right, cols.weight.repeat(image.shape[-1]))
    resized = _between(wide[rows.low], wide[rows.high], rows.weight[:, None])
    return resized.reshape(*size, image.shape[-1])


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Computes first + (second - first) * weight in `second`."""
    second -= first
    second *= weight
    second += first
    return second


def _columns(image: np.ndarray, cols: _Neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns of both neighbours."""
    low, high = cols.used[cols.low], cols.used[cols.high]
    if image.dtype != np.uint8 or image.shape[-1] != 3:
        return np.take(image, low, axis=1), np.take(image, high, axis=1)
    # NumPy takes words of four bytes in a fraction of the time of three bytes.
    words = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA).view(np.uint32)[..., 0]
    pairs = (np.take(words, x, axis=1)[..., None].view(np.uint8) for x in (low, high))
    left, right = (cv2.cvtColor(x, cv2.COLOR_RGBA2RGB) for x in pairs)
    return left, right


@functools.lru_cache(_MAX_LENGTHS)
def _neighbours(old: int, new: int) -> _Neighbours:
    # Each operation rounds to float32, as TensorFlow's do.
    half, scale = np.float32(0.5), np.float32(old) / np.float32(new)
    centres = (np.arange(new, dtype=np.float32) + half) * scale - half
    floors = np.floor(centres)
    low = np.maximum(floors.astype(np.int64), 0)
    high = np.minimum(np.ceil(centres).astype(np.int64), old - 1)
    used, places = np.unique(np.concatenate([low, high]), return_inverse=True)
    return _Neighbours(used, places[:new], places[new:], centres - floors)
