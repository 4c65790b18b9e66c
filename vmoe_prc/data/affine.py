"""3x3 matrices of views, and the resampling that goes with them.

A matrix `a_from_b` takes homogeneous pixel coordinates (row, col, 1) of image b to those of
image a. Coordinates are continuous: pixel [r, c] covers [r, r+1) x [c, c+1).
"""

import tensorflow as tf

Scalar = tf.Tensor | float


def matrix(rows: list[list[Scalar]]) -> tf.Tensor:
    """Makes a (3, 3) float32 matrix of two rows; the third is (0, 0, 1)."""
    flat = [tf.cast(x, tf.float32) for row in [*rows, [0.0, 0.0, 1.0]] for x in row]
    return tf.reshape(tf.stack(flat), (3, 3))


def crop_and_resize_matrix(
    begin: tuple[Scalar, Scalar], size: tuple[Scalar, Scalar], target: tuple[int, int]
) -> tf.Tensor:
    """View_from_image of a box resized to a target size.

    Args:
      begin: (row, col) of the box's upper left corner.
      size: (height, width) of the box.
      target: (height, width) of the view.
    """
    row, col, height, width = (tf.cast(x, tf.float32) for x in (*begin, *size))
    y, x = target[0] / height, target[1] / width
    return matrix([[y, 0.0, -y * row], [0.0, x, -x * col]])


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


def warp(image: tf.Tensor, new_from_old: tf.Tensor, fill: int) -> tf.Tensor:
    """Resamples an image bilinearly, keeping its size.

    Args:
      image: (H, W, C) uint8.
      new_from_old: (3, 3) affine map from the image to the result.
      fill: Value of what lies outside the image.
    """
    # The op counts pixels from their centres, in (x, y), and maps the result to the image.
    half = translation_matrix(0.5, 0.5)
    old_from_new = tf.linalg.inv(half) @ tf.linalg.inv(new_from_old) @ half
    (a, b, ty), (c, d, tx) = (tf.unstack(row) for row in tf.unstack(old_from_new)[:2])
    size = tf.shape(image)[:2]
    zero = tf.zeros(())
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        # In float32: on uint8 the op would cut off fractions and darken the image.
        images=tf.cast(image[None], tf.float32),
        transforms=tf.stack([d, c, tx, b, a, ty, zero, zero])[None],
        output_shape=size,
        fill_value=float(fill),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(tf.cast(tf.round(warped[0]), image.dtype), image.shape)
