"""Ops on one image, or on each of two views of it.

`decode` starts the record of where the pixels came from: `view_from_image`, (3, 3).
Every op that moves pixels multiplies its own matrix from the left. After `two_views`, `image`
and `view_from_image` have a leading axis of 2, and each op treats the views one by one, each
with its own randomness. Random crops and flips only note where the pixels go (see `views`); the
other ops are for evaluation and resample at once.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float64, Int, Shaped

from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import VALUE_RANGE, BadExampleError, Example, Op, computed, register
from vmoe_prc.data.ops.views import Views, views_of, with_views

ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 100

# (image, generator) -> (image, new_from_old or None if no pixel moves)
ViewOp = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, affine.Matrix | None]]
# (row, col, height, width) in pixels
Box = tuple[int, int, int, int]


def each_view(function: ViewOp) -> Op:
    """Turns a function of one image into an op on an example of one or two views."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, matrix = computed(example["image"]), example["view_from_image"]
        if image.ndim == 3:
            image, matrix = _apply(function, image, matrix, rng)
        else:
            views = [_apply(function, image[view], matrix[view], rng) for view in range(2)]
            image, matrix = (np.stack(parts) for parts in zip(*views, strict=True))
        return {**example, "image": image, "view_from_image": matrix}

    return op


def sample_crop(shape: tuple[int, int], area: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draws a box with the area and aspect ratio of Inception's crops.

    The distribution is that of TensorFlow's `sample_distorted_bounding_box`, its peculiarities
    included: all heights between those of the two areas are as likely, whatever their areas, and
    the last row and column that a box could begin at are never drawn.

    Args:
      shape: (height, width) of the image.
      area: Smallest and largest area, in % of the image.
      rng: Source of randomness.
    """
    for _ in range(ATTEMPTS):
        ratio = ASPECT_RATIOS[0] + rng.random() * (ASPECT_RATIOS[1] - ASPECT_RATIOS[0])
        size = _sample_size(shape, area, ratio, rng)
        if size:
            row, col = (
                int(rng.random() * (whole - part)) for whole, part in zip(shape, size, strict=True)
            )
            return (row, col, *size)
    return (0, 0, *shape)


def _sample_size(
    shape: tuple[int, int], area: tuple[float, float], ratio: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draws (height, width) of width / height = ratio, if the image has room for it."""
    pixels = shape[0] * shape[1]
    least, most = (pixels * percent / 100 for percent in area)
    lowest, highest = (round(math.sqrt(bound / ratio)) for bound in (least, most))
    if round(highest * ratio) > shape[1]:
        highest = int((shape[1] + 0.5) / ratio)
    highest = min(highest, shape[0])
    height = min(lowest, highest)
    height += int(rng.random() * (highest - height + 1))
    # Rounding alone is no reason to fail.
    if height * round(height * ratio) < least:
        height += 1
    if height * round(height * ratio) > most:
        height -= 1
    width = round(height * ratio)
    fits = 0 < height <= shape[0] and 0 < width <= shape[1]
    return (height, width) if fits and least <= height * width <= most else None


def crops(
    image: Shaped[np.ndarray, "*images H W C"],
    image_from_original: Float64[np.ndarray, "*images 3 3"],
    boxes: Int[np.ndarray, "*views 4"],
    target: tuple[int, int],
) -> Views:
    """Makes the views that show boxes of an image, resized.

    Args:
      image: The image, or one for each box.
      image_from_original: The image's own matrix.
      boxes: (row, col, height, width) of one view or two.
      target: (height, width) of the views.
    """
    matrices = [affine.crop_and_resize_matrix(box, target) for box in boxes.reshape(-1, 4).tolist()]
    view_from_image = np.reshape(matrices, (*boxes.shape[:-1], 3, 3))
    return Views(image, view_from_image @ image_from_original, view_from_image, boxes, target)


def check_area(area: tuple[float, float]):
    """Raises ValueError unless 0 < area[0] <= area[1] <= 100."""
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 100:
        raise ValueError(f"area {area} must be (smallest, largest) in % of the image")


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width); raises ValueError unless they are positive integers."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"size {size} must be a positive integer or (height, width)")
    return pair


@register
def decode() -> Op:
    """Makes (H, W, 3) uint8 of JPEG or PNG bytes or of an array, grayscale included."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        if isinstance(image, bytes):
            image = decode_image(image)
        else:
            image = image[..., None] if image.ndim == 2 else image
            image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        return {**example, "image": image, "view_from_image": np.eye(3)}

    return op


@register
def inception_crop(size: int, area_min: float = 5, area_max: float = 100) -> Op:
    """Cuts out a box of random area (in %) and aspect ratio, and resizes it to a square."""
    target, area = check_size(size), (area_min, area_max)
    check_area(area)

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, matrix = computed(example["image"]), example["view_from_image"]
        boxes = [sample_crop(image.shape[-3:-1], area, rng) for _ in matrix.reshape(-1, 9)]
        boxes = np.reshape(boxes, (*matrix.shape[:-2], 4))
        return with_views(example, crops(image, matrix, boxes, target))

    return op


@register
def decode_jpeg_and_inception_crop(size: int, area_min: float = 5, area_max: float = 100) -> Op:
    """V-MoE's name for `decode|inception_crop(...)`.

    To decode no more than the box would save nothing: all of a JPEG must be read to find it.
    """
    ops = decode(), inception_crop(size, area_min, area_max)
    return lambda example, rng: ops[1](ops[0](example, rng), rng)


@register
def resize(size: int | tuple[int, int]) -> Op:
    """Resizes to a square, or to (height, width), whatever the aspect ratio."""
    target = check_size(size)

    def function(image, rng):
        matrix = affine.crop_and_resize_matrix((0, 0, *image.shape[:2]), target)
        return _resize(image, target), matrix

    return each_view(function)


@register
def resize_small(size: int) -> Op:
    """Resizes so that the shorter side has `size` pixels, keeping the aspect ratio."""
    check_size(size)

    def function(image, rng):
        old = image.shape[:2]
        new = tuple(round(side * (size / min(old))) for side in old)
        return _resize(image, new), affine.crop_and_resize_matrix((0, 0, *old), new)

    return each_view(function)


@register
def central_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out the middle; an image that is too small is an error."""
    target = check_size(size)

    def function(image, rng):
        rows, cols = _room(image, target)
        return _cut(image, (rows // 2, cols // 2), target)

    return each_view(function)


@register
def random_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out a box of this size at a random place."""
    target = check_size(size)

    def function(image, rng):
        rows, cols = _room(image, target)
        begin = int(rng.random() * (rows + 1)), int(rng.random() * (cols + 1))
        return _cut(image, begin, target)

    return each_view(function)


@register
def flip_lr() -> Op:
    """Flips left and right with probability 1/2."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        views = views_of(example)
        flips = rng.random((*views.axes, 1, 1)) < 0.5
        return with_views(
            example, views.moved(np.where(flips, affine.flip_matrix(views.size[1]), np.eye(3)))
        )

    return op


@register
def value_range(low: float, high: float) -> Op:
    """Maps pixel values from [0, 255] to [low, high], as float32.

    Bytes stay bytes, a quarter of the memory to fill, copy and send, and become floats on the
    accelerator (`feed.device_batches`).
    """
    if not low < high:
        raise ValueError(f"low = {low} must be less than high = {high}")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if example["image"].dtype == np.uint8:
            return {**example, VALUE_RANGE: np.array([low, high], np.float32)}
        image = np.float32(computed(example["image"])) * np.float32((high - low) / 255)
        return {**example, "image": image + np.float32(low)}

    return op


@register
def onehot(num_classes: int, inkey: str = "label", outkey: str = "labels") -> Op:
    """Makes (num_classes,) float32 of a label, or of several."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes = {num_classes!r} must be a positive integer")

    def op(example: Example, rng: np.random.Generator) -> Example:
        _check_keys(example, (inkey,))
        labels, indices = np.zeros(num_classes, np.float32), np.asarray(example[inkey])
        labels[indices[(indices >= 0) & (indices < num_classes)]] = 1
        return {**example, outkey: labels}

    return op


@register
def keep(*keys: str) -> Op:
    """Keeps these entries of the example, and what says which values the image has."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        _check_keys(example, keys)
        kept = {*keys, VALUE_RANGE} if "image" in keys else keys
        return {key: x for key, x in example.items() if key in kept}

    return op


@register
def copy(inkey: str, outkey: str) -> Op:
    """Copies an entry of the example."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        _check_keys(example, (inkey,))
        return {**example, outkey: example[inkey]}

    return op


def _apply(function: ViewOp, image, view_from_image, rng):
    image, matrix = function(image, rng)
    return image, view_from_image if matrix is None else matrix @ view_from_image


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # In floats, as TensorFlow does: fixed-point weights would change every tenth value by one.
    resized = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.rint(resized, out=resized).astype(image.dtype).reshape(*size, image.shape[-1])


def _room(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that an image has beyond a size."""
    rows, cols = image.shape[0] - size[0], image.shape[1] - size[1]
    if min(rows, cols) < 0:
        raise BadExampleError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels is too small to "
            f"crop {size[0]}x{size[1]} out of it"
        )
    return rows, cols


def _cut(image: np.ndarray, begin: tuple[int, int], size: tuple[int, int]):
    cut = image[begin[0] : begin[0] + size[0], begin[1] : begin[1] + size[1]]
    return cut, affine.translation_matrix(-begin[0], -begin[1])


def _check_keys(example: Example, keys: tuple[str, ...]):
    missing = [key for key in keys if key not in example]
    if missing:
        raise ValueError(f"the example has no {missing[0]!r}; it has {', '.join(sorted(example))}")
