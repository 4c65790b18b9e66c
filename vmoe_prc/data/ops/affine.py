"""3x3 matrices of views, NumPy float64.

A matrix `a_from_b` takes homogeneous pixel coordinates (row, col, 1) of image b to coordinates
of image a. Coordinates are continuous: pixel [r, c] covers [r, r+1) x [c, c+1).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

Matrix = Float64[np.ndarray, "3 3"]


def matrix(first: Sequence[float], second: Sequence[float]) -> Matrix:
    """Makes a matrix of two rows; the third is (0, 0, 1)."""
    return np.array([first, second, (0.0, 0.0, 1.0)])


def crop_and_resize_matrix(box: Sequence[float], target: tuple[int, int]) -> Matrix:
    """View_from_image of a box resized to a target size.

    Args:
      box: (row, col, height, width) in pixels of the image.
      target: (height, width) of the view.
    """
    row, col, height, width = box
    y, x = target[0] / height, target[1] / width
    return matrix((y, 0.0, -y * row), (0.0, x, -x * col))


def flip_matrix(width: float) -> Matrix:
    """View_from_view of a left-right flip."""
    return matrix((1.0, 0.0, 0.0), (0.0, -1.0, width))


def translation_matrix(rows: float, cols: float) -> Matrix:
    """View_from_view of a shift down by `rows` and right by `cols`."""
    return matrix((1.0, 0.0, rows), (0.0, 1.0, cols))


def shear_matrix(rows_per_col: float, cols_per_row: float) -> Matrix:
    """View_from_view of a shear: columns move down, or rows right, in proportion to their index."""
    return matrix((1.0, rows_per_col, 0.0), (cols_per_row, 1.0, 0.0))


def rotation_matrix(radians: float, height: float, width: float) -> Matrix:
    """View_from_view of a rotation about the centre of the image, clockwise on the screen."""
    cos, sin = math.cos(radians), math.sin(radians)
    rotation = matrix((cos, sin, 0.0), (-sin, cos, 0.0))
    to_centre = translation_matrix(-height / 2, -width / 2)
    return translation_matrix(height / 2, width / 2) @ rotation @ to_centre
