"""3x3 matrices of views.

A matrix `a_from_b` takes homogeneous pixel coordinates (row, col, 1) of image b to those of
image a. Coordinates are continuous: pixel [r, c] covers [r, r+1) x [c, c+1).
"""

import tensorflow as tf

Scalar = tf.Tensor | float


def matrix(rows: list[list[Scalar]]) -> tf.Tensor:
    """Makes a (3, 3) float32 matrix of two rows; the third is (0, 0, 1)."""
    flat = [tf.cast(x, tf.float32) for row in [*rows, [0.0, 0.0, 1.0]] for x in row]
    return tf.reshape(tf.stack(flat), (3, 3))


def crop_and_resize_matrix(begin, size, target: tuple[int, int]) -> tf.Tensor:
    """View_from_image of boxes resized to a target size.

    Args:
      begin: (..., 2): row and col of the boxes' upper left corners.
      size: (..., 2): height and width of the boxes.
      target: (height, width) of the views.

    Returns:
      (..., 3, 3) float32.
    """
    scale = tf.constant(target, tf.float32) / tf.cast(size, tf.float32)
    shift = -scale * tf.cast(begin, tf.float32)
    rows = tf.concat([tf.linalg.diag(scale), shift[..., None]], axis=-1)
    last = tf.broadcast_to([[0.0, 0.0, 1.0]], tf.shape(rows[..., :1, :]))
    return tf.concat([rows, last], axis=-2)


def flip_matrix(width: Scalar) -> tf.Tensor:
    """View_from_view of a left-right flip."""
    return matrix([[1.0, 0.0, 0.0], [0.0, -1.0, width]])


def translation_matrix(rows: Scalar, cols: Scalar) -> tf.Tensor:
    """Moves the picture down and to the right."""
    return matrix([[1.0, 0.0, rows], [0.0, 1.0, cols]])


def shear_matrix(rows_per_col: Scalar, cols_per_row: Scalar) -> tf.Tensor:
    """Moves each column down, or each row to the right, by its distance from the origin."""
    return matrix([[1.0, rows_per_col, 0.0], [cols_per_row, 1.0, 0.0]])


def rotation_matrix(radians: Scalar, height: Scalar, width: Scalar) -> tf.Tensor:
    """Rotates about the centre of the image, clockwise as it is looked at."""
    radians = tf.cast(radians, tf.float32)
    cos, sin = tf.cos(radians), tf.sin(radians)
    to_centre = translation_matrix(-height / 2, -width / 2)
    back = translation_matrix(height / 2, width / 2)
    return back @ matrix([[cos, sin, 0.0], [-sin, cos, 0.0]]) @ to_centre
