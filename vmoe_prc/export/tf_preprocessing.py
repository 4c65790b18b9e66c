"""The preprocessing of evaluation as TensorFlow ops, from encoded images to pixels."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from vmoe_prc.config import ConfigError
from vmoe_prc.predict.preprocessing import Preprocessing

TensorOp = Callable[[tf.Tensor], tf.Tensor]
# Where EXIF data can be, and the tag of the orientation in them.
_EXIF_WITHIN = 1 << 16
_ORIENTATION = 0x0112


def build_preprocessing(preprocessing: Preprocessing, size: tuple[int, int, int]) -> TensorOp:
    """Builds the function from encoded images (N,) to pixels (N, *size) float32.

    Raises:
      ConfigError: If an op has no counterpart here.
    """
    ops = []
    for name, args, kwargs in preprocessing.calls:
        if name not in _OPS:
            allowed = f"is not written to a SavedModel; these ops are: {', '.join(sorted(_OPS))}"
            raise ConfigError(preprocessing.field, name, allowed)
        ops.append(_OPS[name](*args, **kwargs))
    low, high = preprocessing.value_range

    @tf.autograph.experimental.do_not_convert
    def one(encoded: tf.Tensor) -> tf.Tensor:
        x: Any = encoded
        for op in ops:
            x = op(x)
        # As in `Preprocessing`: bytes, mapped to the range of values at the end.
        return tf.ensure_shape(tf.cast(x, tf.float32) * ((high - low) / 255) + low, size)

    spec = tf.TensorSpec(size, tf.float32)
    return lambda images: tf.map_fn(one, images, fn_output_signature=spec)


def _decode(
    orient: bool = False, background: int | None = None, min_side: int | None = None
) -> TensorOp:
    if min_side is not None:
        expected = "is not written to a SavedModel: leave it out, so that all pixels are decoded"
        raise ConfigError("min_side of decode", min_side, expected)

    def opaque(encoded: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    def composed(encoded: tf.Tensor) -> tf.Tensor:
        """Lays a PNG on the background; other formats with alpha do not come here."""
        pixels = tf.cast(tf.io.decode_png(encoded, channels=4), tf.float32)
        alpha = pixels[..., 3:] / 255
        mixed = pixels[..., :3] * alpha + float(background or 0) * (1 - alpha)
        return tf.cast(tf.round(mixed), tf.uint8)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        if background is None:
            image = opaque(encoded)
        else:
            is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
            image = tf.cond(is_png, lambda: composed(encoded), lambda: opaque(encoded))
        image.set_shape((None, None, 3))
        return _upright(image, _orientation(encoded)) if orient else image

    return decode


def _resize(
    size: int | tuple[int, int],
    method: str = "bilinear",
    antialias: bool = False,
    truncate: bool = False,
) -> TensorOp:
    target = (size, size) if isinstance(size, int) else tuple(size)

    def resize(image: tf.Tensor) -> tf.Tensor:
        # Bilinear as OpenCV's, but for the rounding of values halfway between two levels.
        resized = tf.image.resize(image, target, method, antialias=antialias)
        if image.dtype != tf.uint8:
            return resized
        whole = resized if truncate else tf.round(resized)
        return tf.cast(tf.clip_by_value(whole, 0, 255), tf.uint8)

    return resize


def _resize_small(size: int) -> TensorOp:
    def resize_small(image: tf.Tensor) -> tf.Tensor:
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        ratio = tf.constant(size, tf.float32) / tf.reduce_min(sides)
        return tf.image.resize(image, tf.cast(tf.round(sides * ratio), tf.int32), "area")

    return resize_small


def _central_crop(size: int | tuple[int, int]) -> TensorOp:
    height, width = (size, size) if isinstance(size, int) else size

    def central_crop(image: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(image)
        top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
        message = f"an image is too small to crop {height}x{width} out of it"
        tf.debugging.assert_non_negative(tf.minimum(top, left), message)
        return image[top : top + height, left : left + width]

    return central_crop


def _value_range(low: float, high: float) -> TensorOp:
    del low, high  # applied at the end
    return lambda image: image


_OPS: dict[str, Callable[..., TensorOp]] = {
    "decode": _decode,
    "resize": _resize,
    "resize_small": _resize_small,
    "central_crop": _central_crop,
    "value_range": _value_range,
}


def _orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the orientation, 1 to 8, from EXIF data of a JPEG; 1 if there is none."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, _EXIF_WITHIN), tf.uint8)
    head = tf.pad(tf.cast(head, tf.int32), [[0, 16]])
    count = tf.shape(head)[0]
    marks = [head[i : count - 8 + i] == byte for i, byte in enumerate(b"Exif\0\0")]
    found = tf.where(tf.reduce_all(tf.stack(marks), axis=0))[:, 0]
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    tiff = tf.cond(tf.size(found) > 0, lambda: tf.cast(found[0], tf.int32) + 6, lambda: -1)
    one = tf.constant(1)
    return tf.cond(is_jpeg & (tiff >= 0), lambda: _tag(head, tiff, count), lambda: one)


def _tag(head: tf.Tensor, tiff: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    little = head[tiff] == ord("I")

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        index = tf.clip_by_value(tf.expand_dims(at, -1) + tf.range(size), 0, count - 1)
        digits = tf.gather(head, index)
        digits = tf.where(little, digits, tf.reverse(digits, [-1]))
        return tf.reduce_sum(digits * tf.constant([256**i for i in range(size)]), -1)

    # The third and fourth bytes of an offset are 0 within the bytes that are read.
    offset = tf.where(little, number(tiff + 4, 2), number(tiff + 6, 2))
    directory = tiff + offset
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    values = tf.boolean_mask(number(entries + 8, 2), number(entries, 2) == _ORIENTATION)
    value = tf.concat([values, [1]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes how a camera was held, as `data.ops.decoding` does."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    turned = tf.gather([0, 1, 2, 3, 4, 1, 2, 3, 4], orientation)
    left_right = (turned == 2) | (turned == 3)
    up_down = (turned == 3) | (turned == 4)
    image = tf.cond(left_right, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(up_down, lambda: tf.reverse(image, [0]), lambda: image)
