"""Ops on one image, or on each of its two views.

`decode` adds the entry `view_from_image`, (3, 3) float64: the map from pixel coordinates of the
decoded image to coordinates of the current view, see `affine`. Every op that moves pixels
multiplies its matrix from the left. `two_views` gives `image` and `view_from_image` a leading axis
of 2; later ops treat the views separately, each with its own randomness. Random crops and flips
only record where pixels go (see `views`); the other ops, meant for evaluation, resample at once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Float64, Int, Shaped

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.bilinear import resize_bilinear
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import (
    BadExampleError,
    Example,
    Op,
    PreprocessError,
    computed,
    pixels_of,
    require,
)
from vmoe_prc.data.ops.views import Views, views_of, with_views

ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 100
# Larger numbers are mistakes, and would need gigabytes for one image.
MAX_SIDE = 8192
MAX_CLASSES = 10**7

# (image, generator) -> (image, new_from_old or None if no pixel moves)
ViewOp = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, affine.Matrix | None]]
# image -> image of another size
Resample = Callable[[np.ndarray], np.ndarray]
# (row, col, height, width) in pixels
Box = tuple[int, int, int, int]


def each_view(function: ViewOp) -> Op:
    """Turns a function of one image into an op on an example of one or two views."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, matrix = pixels_of(example)
        if image.ndim == 3:
            image, matrix = _apply(function, image, matrix, rng)
        else:
            views = [_apply(function, image[view], matrix[view], rng) for view in range(2)]
            image, matrix = (np.stack(parts) for parts in zip(*views, strict=True))
        return {**example, "image": image, "view_from_image": matrix}

    return op


def sample_crop(shape: tuple[int, int], area: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draws a box with the area and aspect ratio of Inception's crops.

    The distribution equals TensorFlow's `sample_distorted_bounding_box`, including two
    peculiarities: heights, not areas, are uniform between the two bounds, and the last possible
    first row and column are never drawn.

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
    # Rounding the width may leave the range of areas: try the next height.
    if height * round(height * ratio) < least:
        height += 1
    if height * round(height * ratio) > most:
        height -= 1
    width = round(height * ratio)
    fits = 0 < height <= shape[0] and 0 < width <= shape[1]
    return (height, width) if fits and least <= height * width <= most else None


def crops(
    source: Shaped[np.ndarray, "*images H W C"],
    source_from_image: Float64[np.ndarray, "*images 3 3"],
    boxes: Int[np.ndarray, "*views 4"],
    target: tuple[int, int],
    resample: Resample | None = None,
) -> Views:
    """Makes the views that show boxes of a picture, resized.

    Args:
      source: Pixels to crop: the decoded image, or what earlier ops made of it; one picture,
        or one per box.
      source_from_image: Map from coordinates of the decoded image to coordinates of `source`.
      boxes: (row, col, height, width) in pixels of `source`, of one view or of two.
      target: (height, width) of the views.
      resample: Function that resizes each box at once, so that later ops move its pixels; with
        None all moves of a view are one bilinear interpolation.
    """
    matrices = [affine.crop_and_resize_matrix(box, target) for box in boxes.reshape(-1, 4).tolist()]
    view_from_source = np.reshape(matrices, (*boxes.shape[:-1], 3, 3))
    view_from_image = view_from_source @ source_from_image
    if resample is None:
        return Views(source, view_from_image, view_from_source, boxes, target)
    pixels = [
        resample(picture[row : row + height, col : col + width])
        for picture, (row, col, height, width) in zip(
            np.broadcast_to(source, (len(matrices), *source.shape[-3:])),
            boxes.reshape(-1, 4).tolist(),
            strict=True,
        )
    ]
    pixels = np.reshape(pixels, (*boxes.shape[:-1], *target, source.shape[-1]))
    still = np.broadcast_to(np.eye(3), view_from_image.shape)
    whole = np.broadcast_to((0, 0, *target), boxes.shape)
    return Views(pixels, view_from_image, still, whole, target)


def check_area(area: tuple[float, float]):
    """Raises ValueError unless 0 < area[0] <= area[1] <= 100."""
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 100:
        raise ValueError(f"area {area} must be (smallest, largest) in % of the image")


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width); raises ValueError unless they are positive integers."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(x, int) and 0 < x <= MAX_SIDE for x in pair):
        raise ValueError(
            f"size {size} must be a positive integer or (height, width), at most {MAX_SIDE}"
        )
    return pair


@OPS.register()
def decode(orient: bool = False, background: int | None = None, min_side: int | None = None) -> Op:
    """Decodes `image` to (H, W, 3) uint8: encoded bytes, or an array of pixels, also gray.

    Args:
      orient: Whether to turn photos upright by the orientation in their EXIF data.
        `view_from_image` starts from the upright image.
      background: Gray on which transparent pictures are laid, 255 for white; None drops alpha,
        so that the colours of transparent pixels show.
      min_side: Decodes large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as the shorter side
        has this many pixels; None decodes all. Faster where views need few of the pixels, but
        not the same pixels. `view_from_image` starts from the smaller image.
    """
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side {min_side} must be at least 1")
    if background is not None and background not in range(256):
        raise ValueError(f"background {background} must be an integer from 0 to 255")

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, "image")
        image = example["image"]
        if isinstance(image, bytes):
            image = decode_image(image, orient, background, min_side)
        else:
            image = image[..., None] if image.ndim == 2 else image
            image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        return {**example, "image": image, "view_from_image": np.eye(3)}

    return op


@OPS.register()
def inception_crop(
    size: int,
    area_min: float = 5,
    area_max: float = 100,
    method: str = "bilinear",
    antialias: bool = False,
    truncate: bool = False,
) -> Op:
    """Cuts out a box of random area (in %) and aspect ratio, and resizes it to a square.

    Args:
      size: Side of the square in pixels.
      area_min: Smallest area of the box, in % of the image.
      area_max: Its largest area.
      method: One of `tf.image.ResizeMethod`, such as 'area' or 'bicubic'.
      antialias: Whether each pixel is made of all that it covers.
      truncate: Whether fractions of bytes are dropped, as in V-MoE's program, not rounded.
    """
    target, area = check_size(size), (area_min, area_max)
    check_area(area)
    resample = resampling(target, method, antialias, truncate)

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, matrix = pixels_of(example)
        boxes = [sample_crop(image.shape[-3:-1], area, rng) for _ in matrix.reshape(-1, 9)]
        boxes = np.reshape(boxes, (*matrix.shape[:-2], 4))
        return with_views(example, crops(image, matrix, boxes, target, resample))

    return op


@OPS.register()
def decode_jpeg_and_inception_crop(
    size: int,
    area_min: float = 5,
    area_max: float = 100,
    method: str = "bilinear",
    antialias: bool = False,
    truncate: bool = False,
) -> Op:
    """V-MoE's name for `decode|inception_crop(...)`.

    Decoding only the box would save little: entropy decoding needs all bytes before it.
    """
    ops = decode(), inception_crop(size, area_min, area_max, method, antialias, truncate)
    return lambda example, rng: ops[1](ops[0](example, rng), rng)


@OPS.register()
def resize(
    size: int | tuple[int, int],
    method: str = "bilinear",
    antialias: bool = False,
    truncate: bool = False,
) -> Op:
    """Resizes to a square, or to (height, width); the aspect ratio may change.

    Args:
      size: Side, or (height, width), in pixels.
      method: One of `tf.image.ResizeMethod`, such as 'area' or 'bicubic'.
      antialias: Whether each pixel is made of all that it covers.
      truncate: Whether fractions of bytes are dropped, as in V-MoE's program, not rounded.
    """
    target = check_size(size)
    resample = resampling(target, method, antialias, truncate)

    def function(image, rng):
        matrix = affine.crop_and_resize_matrix((0, 0, *image.shape[:2]), target)
        return _resize(image, target) if resample is None else resample(image), matrix

    return each_view(function)


def resampling(
    target: tuple[int, int], method: str, antialias: bool, truncate: bool
) -> Resample | None:
    """Returns a function that resizes as TensorFlow does; None for OpenCV's bilinear weights.

    Args:
      target: (height, width) of the result.
      method: One of `tf.image.ResizeMethod`.
      antialias: Whether each pixel is made of all that it covers.
      truncate: Whether fractions of bytes are dropped, not rounded.
    """
    if method not in (known := tf.image.ResizeMethod.__dict__.values()):
        names = sorted(name for name in known if isinstance(name, str) and name.islower())
        raise ValueError(f"method = {method!r} must be one of {', '.join(names)}")
    if (method, antialias) == ("bilinear", False):
        if not truncate:
            return None
        return lambda image: resize_bilinear(image, target).astype(image.dtype)

    def resample(image: np.ndarray) -> np.ndarray:
        resized = tf.image.resize(image, target, method, antialias=antialias).numpy()
        if image.dtype == np.uint8:
            resized = np.clip(resized if truncate else np.rint(resized), 0, 255)
        return resized.astype(image.dtype)

    return resample


@OPS.register()
def resize_small(size: int) -> Op:
    """Resizes so that the shorter side has `size` pixels, keeping the aspect ratio.

    A new pixel is the mean of the area that it covers, as in TensorFlow's `resize_area`: float32,
    not rounded.
    """
    check_size(size)

    def function(image, rng):
        rows, columns = image.shape[:2]
        ratio = np.float32(size) / np.float32(min(rows, columns))
        new = (int(np.round(np.float32(rows) * ratio)), int(np.round(np.float32(columns) * ratio)))
        return resize_area(image, new), affine.crop_and_resize_matrix((0, 0, rows, columns), new)

    return each_view(function)


@OPS.register()
def central_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out the centre; an image smaller than `size` is a bad example."""
    target = check_size(size)

    def function(image, rng):
        rows, cols = _room(image, target)
        return _cut(image, (rows // 2, cols // 2), target)

    return each_view(function)


@OPS.register()
def random_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out a box of `size` at a uniformly random position."""
    target = check_size(size)

    def function(image, rng):
        rows, cols = _room(image, target)
        begin = int(rng.random() * (rows + 1)), int(rng.random() * (cols + 1))
        return _cut(image, begin, target)

    return each_view(function)


@OPS.register()
def flip_lr() -> Op:
    """Flips left and right with probability 1/2."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        views = views_of(example)
        flips = rng.random((*views.axes, 1, 1)) < 0.5
        return with_views(
            example, views.moved(np.where(flips, affine.flip_matrix(views.size[1]), np.eye(3)))
        )

    return op


def rescale(images: Any, value_range: Any) -> Any:
    """Maps pixel values from [0, 255] to [low, high], as float32.

    Args:
      images: An array of NumPy or JAX, of any shape.
      value_range: (low, high).
    """
    low, high = value_range
    return images.astype(np.float32) * ((high - low) / 255) + low


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Op that maps pixel values from [0, 255] to [low, high].

    Images of bytes stay bytes, which are a quarter of the memory to fill, copy and send: their
    map is applied on the device, see `Split.value_range`. Others become float32 here.
    """

    low: float
    high: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Maps an image that is not of bytes."""
        require(example, "image")
        if isinstance(example["image"], bytes):
            raise PreprocessError("value_range needs pixels: decode the image first")
        if example["image"].dtype == np.uint8:
            return example
        image = np.float32(computed(example["image"]))
        return {**example, "image": rescale(image, (self.low, self.high))}

    def on_host(self, example: Example, rng: np.random.Generator) -> Example:
        """Maps an image of any type."""
        require(example, "image")
        return self({**example, "image": np.float32(computed(example["image"]))}, rng)


@OPS.register()
def value_range(
    low: float = -1,
    high: float = 1,
    in_min: float | tuple[float, float, float] = 0,
    in_max: float | tuple[float, float, float] = 255,
    clip_values: bool = False,
) -> Op:
    """Maps pixel values from [in_min, in_max] to [low, high], as float32.

    Args:
      low: Value of `in_min`.
      high: Value of `in_max`.
      in_min: Smallest value, one for all channels or one per channel.
      in_max: Largest value, one for all channels or one per channel.
      clip_values: Whether values beyond the range become its ends.
    """
    if not low < high:
        raise ValueError(f"low = {low} must be less than high = {high}")
    if np.any(np.greater_equal(in_min, in_max)):
        raise ValueError(f"in_min = {in_min} must be less than in_max = {in_max}")
    if (in_min, in_max, clip_values) == (0, 255, False):
        return ValueRange(low, high)
    first, size = np.asarray(in_min, np.float32), np.subtract(in_max, in_min, dtype=np.float32)

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, _ = pixels_of(example)
        image = (image.astype(np.float32) - first) / size * np.float32(high - low) + np.float32(low)
        return {**example, "image": np.clip(image, low, high) if clip_values else image}

    return op


@OPS.register()
def onehot(
    num_classes: int,
    inkey: str = "label",
    outkey: str = "labels",
    multi: bool = True,
    on: float = 1.0,
    off: float = 0.0,
) -> Op:
    """Makes (num_classes,) float32: 1 for the label, or for each of several labels.

    A negative label means that the image has none, as in TFDS's test splits: its row is all
    zeros, and counts in no accuracy. A label of num_classes or more is an error.

    Args:
      num_classes: Number of classes.
      inkey: Entry of the label or labels, integers.
      outkey: Entry of the row.
      multi: Whether several labels share one row; there is no other way.
      on: Value of the classes of the labels.
      off: Value of the others.
    """
    if not multi:
        raise ValueError("multi = False would give rows of different numbers")
    if not 0 < num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes = {num_classes!r} must be a positive integer")

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, inkey)
        labels, indices = np.zeros(num_classes, np.float32), np.asarray(example[inkey])
        if indices.dtype.kind not in "iu":
            raise PreprocessError(f"{inkey!r} must be an integer class, not {indices.dtype}")
        if indices.size and indices.max() >= num_classes:
            raise PreprocessError(
                f"{inkey!r} may be {indices.max()}, and num_classes = {num_classes} is too small"
            )
        labels[indices[indices >= 0]] = 1
        if (on, off) != (1, 0) and labels.any():
            labels = labels * np.float32(on - off) + np.float32(off)
        return {**example, outkey: labels}

    return op


@OPS.register()
def keep(*keys: str) -> Op:
    """Keeps these entries of the example and drops the others."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, *keys)
        return {key: entry for key, entry in example.items() if key in keys}

    return op


@OPS.register()
def copy(inkey: str, outkey: str) -> Op:
    """Copies an entry of the example."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, inkey)
        return {**example, outkey: example[inkey]}

    return op


def _apply(function: ViewOp, image, view_from_image, rng):
    image, matrix = function(image, rng)
    return image, view_from_image if matrix is None else matrix @ view_from_image


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # In floats, as TensorFlow does: fixed-point weights would change every tenth value by one.
    resized = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.rint(resized, out=resized).astype(image.dtype).reshape(*size, image.shape[-1])


def resize_area(image: Shaped[np.ndarray, "H W C"], size: tuple[int, int]) -> np.ndarray:
    """Resamples by area: each new pixel is the mean of the part of the image that it covers.

    Args:
      image: (H, W, C) pixels.
      size: (height, width) of the result.

    Returns:
      (*size, C) float32.
    """
    image = image.astype(np.float32)
    if size[0] <= image.shape[0] and size[1] <= image.shape[1]:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        return resized.reshape(*size, image.shape[-1])
    # OpenCV has no such mean where pixels multiply.
    rows, cols = (_covered(old, new) for old, new in zip(image.shape, size, strict=False))
    return np.einsum("rh,hwc,dw->rdc", rows, image, cols, optimize=True)


def _covered(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Returns the share that each old pixel has in each new one, along one axis."""
    edges = np.arange(new + 1) * (old / new)
    first, last = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    overlap = np.minimum(last, pixel + 1) - np.maximum(first, pixel)
    return (np.maximum(overlap, 0) * (new / old)).astype(np.float32)


def _room(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Returns by how many rows and columns an image exceeds a size."""
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
