"""RandAugment (arXiv 1909.13719) that knows where each pixel went.

The ops and their strengths are those of V-MoE's `randaug(num_layers, magnitude)`: every
layer picks one of 16 ops at random and applies it at the same magnitude, of which 10 is
the unit. Images are uint8; what a geometric op uncovers is gray.
"""

import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from vmoe_prc.data import affine
from vmoe_prc.data.image_ops import each_view
from vmoe_prc.data.pp import Op, register

GRAY = 128
MAX_ROTATION = math.radians(30)
MAX_SHEAR = 0.3
LUMA = (0.2989, 0.5870, 0.1140)

# (level, height, width) -> new_from_old; the sign of the level is random.
GEOMETRIC: Mapping[str, Callable[..., tf.Tensor]] = {
    "rotate": lambda level, h, w, _: affine.rotation_matrix(level * MAX_ROTATION, h, w),
    "shear_x": lambda level, h, w, _: affine.shear_matrix(0.0, level * MAX_SHEAR),
    "shear_y": lambda level, h, w, _: affine.shear_matrix(level * MAX_SHEAR, 0.0),
    "translate_x": lambda level, h, w, most: affine.translation_matrix(0.0, level * most),
    "translate_y": lambda level, h, w, most: affine.translation_matrix(level * most, 0.0),
}


@register
def randaug(
    num_layers: int = 2,
    magnitude: float = 10,
    translate_const: float = 100,
    cutout_const: float = 40,
) -> Op:
    """Applies RandAugment to each view.

    Args:
      num_layers: How many ops in a row.
      magnitude: Strength of all ops, usually from 0 to 30.
      translate_const: Pixels that a translation of magnitude 10 moves.
      cutout_const: Half the side, in pixels, of the square of a cutout of magnitude 10.
    """
    if num_layers < 0 or magnitude < 0:
        raise ValueError(f"num_layers = {num_layers} and magnitude = {magnitude} must be >= 0")
    level = magnitude / 10
    cutout_half = int(level * cutout_const)

    def geometric(name):
        def branch(image, seed):
            positive = tf.random.stateless_uniform((), seed) < 0.5
            signed = tf.where(positive, level, -level)
            height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
            matrix = GEOMETRIC[name](signed, height, width, translate_const)
            return affine.warp(image, matrix, GRAY), matrix

        return branch

    def photometric(function):
        return lambda image, seed: (function(image, level), tf.eye(3))

    branches = [
        *map(geometric, GEOMETRIC),
        *map(photometric, PHOTOMETRIC.values()),
        lambda image, seed: (_cutout(image, cutout_half, seed), tf.eye(3)),
    ]

    def function(image, seed):
        matrix = tf.eye(3)
        for layer in range(num_layers):
            seeds = tf.random.experimental.stateless_split(
                tf.random.experimental.stateless_fold_in(seed, layer), 2
            )
            choice = tf.random.stateless_uniform((), seeds[0], 0, len(branches), tf.int32)
            image, moved = tf.switch_case(
                choice,
                [lambda b=b, image=image, s=seeds[1]: b(image, s) for b in branches],
            )
            matrix = moved @ matrix
        return image, matrix

    return each_view(function)


def autocontrast(image: tf.Tensor, level: float) -> tf.Tensor:
    """Stretches each channel to [0, 255]."""
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float32)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float32)
    values = tf.range(256, dtype=tf.float32)[:, None]
    stretched = (values - low) * (255 / tf.maximum(high - low, 1))
    return _look_up(image, tf.where(high > low, stretched, values))


def equalize(image: tf.Tensor, level: float) -> tf.Tensor:
    """Equalises the histogram of each channel, as PIL does."""
    flat = tf.reshape(image, (-1, 3))
    tables = []
    for channel in range(3):
        values = tf.cast(flat[:, channel], tf.int32)
        histogram = tf.math.bincount(values, minlength=256, maxlength=256)
        used = tf.boolean_mask(histogram, histogram > 0)
        step = (tf.reduce_sum(used) - used[-1]) // 255
        before = tf.cumsum(histogram, exclusive=True) + step // 2
        table = tf.minimum(before // tf.maximum(step, 1), 255)
        tables.append(tf.where(step > 0, table, tf.range(256)))
    return _look_up(image, tf.cast(tf.stack(tables, axis=1), tf.float32))


def invert(image: tf.Tensor, level: float) -> tf.Tensor:
    """Turns light to dark."""
    return 255 - image


def posterize(image: tf.Tensor, level: float) -> tf.Tensor:
    """Keeps the highest bits, 4 at level 1."""
    shift = 8 - min(max(int(level * 4), 0), 8)
    if shift == 8:
        return tf.zeros_like(image)
    return tf.bitwise.left_shift(
        tf.bitwise.right_shift(image, tf.cast(shift, tf.uint8)), tf.cast(shift, tf.uint8)
    )


def solarize(image: tf.Tensor, level: float) -> tf.Tensor:
    """Inverts pixels from a threshold on, 256 at level 1."""
    return tf.where(tf.cast(image, tf.int32) < int(level * 256), image, 255 - image)


def solarize_add(image: tf.Tensor, level: float) -> tf.Tensor:
    """Brightens the dark half, by 110 at level 1."""
    brighter = tf.cast(tf.minimum(tf.cast(image, tf.int32) + int(level * 110), 255), tf.uint8)
    return tf.where(image < 128, brighter, image)


def color(image: tf.Tensor, level: float) -> tf.Tensor:
    """Moves away from the grayscale image."""
    gray = tf.reduce_sum(tf.cast(image, tf.float32) * LUMA, axis=-1, keepdims=True)
    return _blend(gray, image, level)


def contrast(image: tf.Tensor, level: float) -> tf.Tensor:
    """Moves away from the mean gray."""
    gray = tf.reduce_sum(tf.cast(image, tf.float32) * LUMA, axis=-1)
    return _blend(tf.reduce_mean(gray), image, level)


def brightness(image: tf.Tensor, level: float) -> tf.Tensor:
    """Moves away from black."""
    return _blend(0.0, image, level)


def sharpness(image: tf.Tensor, level: float) -> tf.Tensor:
    """Moves away from the image smoothed by a 3x3 kernel; the border stays."""
    pixels = tf.cast(image, tf.float32)
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = tf.tile(kernel[:, :, None, None], (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(pixels[None], kernel, (1, 1, 1, 1), "VALID")[0]
    inside = tf.pad(tf.ones_like(smooth, tf.bool), ((1, 1), (1, 1), (0, 0)))
    smooth = tf.pad(smooth, ((1, 1), (1, 1), (0, 0)))
    return _blend(tf.where(inside, smooth, pixels), image, level)


PHOTOMETRIC: Mapping[str, Callable[[tf.Tensor, float], tf.Tensor]] = {
    function.__name__: function
    for function in (
        autocontrast,
        equalize,
        invert,
        posterize,
        solarize,
        solarize_add,
        color,
        contrast,
        brightness,
        sharpness,
    )
}


def _cutout(image: tf.Tensor, half: int, seed: tf.Tensor) -> tf.Tensor:
    """Grays out a square around a random pixel."""
    height, width = tf.unstack(tf.shape(image)[:2])
    centre = tf.random.stateless_uniform((2,), seed)
    row = tf.cast(centre[0] * tf.cast(height, tf.float32), tf.int32)
    col = tf.cast(centre[1] * tf.cast(width, tf.float32), tf.int32)

    def inside(position, length):
        index = tf.range(length)
        return (index >= position - half) & (index < position + half)

    square = inside(row, height)[:, None, None] & inside(col, width)[None, :, None]
    return tf.where(square, tf.cast(GRAY, tf.uint8), image)


def _blend(base, image: tf.Tensor, level: float) -> tf.Tensor:
    """Extrapolates from the base through the image; a factor of 1 is the image."""
    factor = level * 1.8 + 0.1
    pixels = tf.cast(image, tf.float32)
    return tf.saturate_cast(base + factor * (pixels - base), tf.uint8)


def _look_up(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Replaces each value by its entry in a (256, 3) float32 table, one a channel."""
    table = tf.saturate_cast(table, tf.uint8)
    index = tf.cast(image, tf.int32)
    channels = [tf.gather(table[:, c], index[..., c]) for c in range(3)]
    return tf.stack(channels, axis=-1)
