"""Resamples the pixels of a view once from its source: NumPy arrays and OpenCV.

All geometric ops of a view, from the crop to the last rotation, are one affine map
`view_from_source` of pixel coordinates (row, col, 1); see `affine`. Sampling is bilinear without
antialiasing, as in V-MoE; outside of the crop its outermost pixels are repeated.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from vmoe_prc.data.ops import affine

# Maps that differ by less than this, in pixels of the view, are treated as equal.
TOLERANCE = 1e-2
COVERED, UNCOVERED = 0, 255
_STILL = np.eye(3)
# RandAugment draws its moves from a few: the marks of the last _MAX_MARKS moves are kept, where the
# view has at most _MAX_MARKED pixels.
_MAX_MARKS, _MAX_MARKED = 64, 512 * 512


def resample(
    source: Shaped[np.ndarray, "H W C"],
    box: Sequence[int],
    view_from_source: affine.Matrix,
    size: tuple[int, int],
    out: Shaped[np.ndarray, "h w C"] | None = None,
) -> Shaped[np.ndarray, "h w C"]:
    """Makes a view of a box of the source.

    Args:
      source: The pixels; those outside of the box are not used.
      box: (row, col, height, width) in pixels of the source.
      view_from_source: Affine map from the source to the view.
      size: (height, width) of the view.
      out: Array for the view; None makes a new one.
    """
    if out is None:
        out = np.empty((*size, source.shape[-1]), source.dtype)
    row, col, height, width = box
    content = source[row : row + height, col : col + width]
    view_from_box = view_from_source @ affine.translation_matrix(row, col)
    flip, shift = _resize_and(view_from_box, (height, width), size)
    if shift is None:
        return _warp(content, view_from_box, out)
    # A resize, a flip and a shift by whole pixels: equal up to rounding, several times as fast.
    if not flip and not any(shift):
        return _resize(content, out)
    view = _resize(content, np.empty_like(out))
    if not any(shift):
        return cv2.flip(view, 1, dst=out)
    return _shift(cv2.flip(view, 1) if flip else view, *shift, out)


def uncovered(view_from_canvas: affine.Matrix, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Marks pixels of a view whose centres lie outside a canvas of the view's size.

    Args:
      view_from_canvas: Affine map from the canvas to the view.
      size: (height, width) of both.

    Returns:
      255 where the canvas does not reach, 0 elsewhere; not to be changed, as it may be kept.
    """
    find = _uncovered if size[0] * size[1] <= _MAX_MARKED else _uncovered.__wrapped__
    return find(tuple(view_from_canvas.ravel().tolist()), tuple(size))


def square(
    view_from_canvas: affine.Matrix,
    size: tuple[int, int],
    centre: Sequence[int],
    half: int,
) -> UInt8[np.ndarray, "h w"]:
    """Marks the pixels of a view whose centres lie in a square of a canvas; see `uncovered`.

    Args:
      view_from_canvas: Affine map from the canvas to the view.
      size: (height, width) of both.
      centre: (row, col) of the canvas.
      half: Half the side of the square.
    """
    canvas = np.full(size, COVERED, np.uint8)
    begin, end = np.maximum(np.subtract(centre, half), 0), np.maximum(np.add(centre, half), 0)
    canvas[begin[0] : end[0], begin[1] : end[1]] = UNCOVERED
    return _mark(canvas, view_from_canvas, COVERED)


def _resize(content: np.ndarray, out: np.ndarray) -> np.ndarray:
    return cv2.resize(content, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)


def _warp(content: np.ndarray, view_from_box: np.ndarray, out: np.ndarray) -> np.ndarray:
    # OpenCV warps four channels in half the time of three.
    colour = content.shape[-1] == 3
    warped = cv2.warpAffine(
        cv2.cvtColor(content, cv2.COLOR_RGB2RGBA) if colour else content,
        _columns_first(view_from_box),
        out.shape[1::-1],
        dst=None if colour else out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out) if colour else warped


@functools.lru_cache(_MAX_MARKS)
def _uncovered(view_from_canvas: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    canvas = np.full(size, COVERED, np.uint8)
    return _mark(canvas, np.reshape(view_from_canvas, (3, 3)), UNCOVERED)


def _mark(canvas: np.ndarray, view_from_canvas: np.ndarray, outside: int) -> np.ndarray:
    if np.array_equal(view_from_canvas, _STILL):
        return canvas
    return cv2.warpAffine(
        canvas,
        _columns_first(view_from_canvas),
        canvas.shape[::-1],
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=outside,
    )


def _resize_and(
    view_from_box: np.ndarray, old: Sequence[int], new: Sequence[int]
) -> tuple[bool, tuple[int, int] | None]:
    """Splits a map into a resize, an optional flip, and a shift by whole pixels, if it is these.

    Returns:
      Whether it flips left and right, and the shift in rows and columns, None if there is none.
    """
    (a, b, top), (c, d, left) = view_from_box[:2].tolist()
    flip = d < 0
    if flip:
        d, left = -d, left - new[1]
    rows, cols = round(top), round(left)
    errors = (b * old[1], c * old[0], a * old[0] - new[0], d * old[1] - new[1])
    errors += (top - rows, left - cols)
    whole = max(map(abs, errors)) < TOLERANCE and abs(rows) < new[0] and abs(cols) < new[1]
    return flip, (rows, cols) if whole else None


def _shift(view: np.ndarray, rows: int, cols: int, out: np.ndarray) -> np.ndarray:
    height, width = view.shape[:2]
    up, down, left, right = max(-rows, 0), max(rows, 0), max(-cols, 0), max(cols, 0)
    kept = view[up : height - down, left : width - right]
    return cv2.copyMakeBorder(kept, down, up, right, left, cv2.BORDER_REPLICATE, dst=out)


def _columns_first(new_from_old: np.ndarray) -> np.ndarray:
    """Returns the inverse (2, 3) in OpenCV's (x, y), which are 0 at the first pixel's centre."""
    (a, b, t), (c, d, u) = new_from_old[:2].tolist()
    # Centres are at 0.5.
    t, u = t + (a + b - 1) / 2, u + (c + d - 1) / 2
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return np.array([[d, c, -c * t - d * u], [b, a, -a * t - b * u]])
