"""Ops on one image, or on each of two views of it.

`decode` starts the record of where the pixels came from: `view_from_image`, (3, 3) float32.
Every op that moves pixels multiplies its own matrix from the left. After `two_views`, `image`
and `view_from_image` have a leading axis of 2, and each op treats the views one by one, each
with its own randomness. Random crops and flips only note where the pixels go (see `views`); the
other ops are for evaluation and resample at once.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from vmoe_prc.data import affine
from vmoe_prc.data.pp import VALUE_RANGE, Example, Op, register
from vmoe_prc.data.views import Views, pixels_of, views_of, with_views

ASPECT_RATIOS = (3 / 4, 4 / 3)

# (image, seed) -> (image, new_from_old or None if no pixel moves)
ViewOp = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]]


def each_view(function: ViewOp) -> Op:
    """Turns a function of one image into an op on an example of one or two views."""

    def op(example: Example, seed: tf.Tensor) -> Example:
        image, matrix = pixels_of(example), example["view_from_image"]
        if image.shape.rank == 3:
            image, matrix = _apply(function, image, matrix, seed)
        else:
            views = [
                _apply(
                    function,
                    image[view],
                    matrix[view],
                    tf.random.experimental.stateless_fold_in(seed, view),
                )
                for view in range(2)
            ]
            image, matrix = (tf.stack(parts) for parts in zip(*views, strict=True))
        return {**example, "image": image, "view_from_image": matrix}

    return op


def sample_crop(shape: tf.Tensor, area: tuple[float, float], seed: tf.Tensor) -> tf.Tensor:
    """Draws a box with the area and aspect ratio of Inception's crops.

    Args:
      shape: (3,) int32, that of the image.
      area: Smallest and largest area, in % of the image.
      seed: (2,) int64.

    Returns:
      (4,) int32: row, col, height and width of the box.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((0, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RATIOS,
        area_range=(area[0] / 100, area[1] / 100),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def sample_two_crops(
    shape: tf.Tensor, areas: Sequence[tuple[float, float]], seed: tf.Tensor
) -> tf.Tensor:
    """Draws a box for each of two views, (2, 4); see `sample_crop`."""
    seeds = tf.random.experimental.stateless_split(seed, 2)
    return tf.stack([sample_crop(shape, area, seeds[i]) for i, area in enumerate(areas)])


def crops(
    image: tf.Tensor, image_from_original: tf.Tensor, boxes: tf.Tensor, target: tuple[int, int]
) -> Views:
    """Makes the views that show boxes of an image, resized.

    Args:
      image: (H, W, C), or (2, H, W, C): one for each box.
      image_from_original: (3, 3) or (2, 3, 3), the image's own matrix.
      boxes: (4,) or (2, 4) int32: row, col, height, width.
      target: (height, width) of the views.
    """
    matrix = affine.crop_and_resize_matrix(boxes[..., :2], boxes[..., 2:], target)
    return Views(image, image_from_original, matrix @ image_from_original, boxes, target)


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

    def op(example: Example, seed: tf.Tensor) -> Example:
        image = example["image"]
        if image.dtype == tf.string:
            image = tf.io.decode_image(image, channels=3, expand_animations=False)
            image = tf.ensure_shape(image, (None, None, 3))
        else:
            if image.shape.rank == 2:
                image = image[..., None]
            if image.shape[-1] == 1:
                image = tf.image.grayscale_to_rgb(image)
        return {**example, "image": image, "view_from_image": tf.eye(3)}

    return op


@register
def decode_jpeg_and_inception_crop(size: int, area_min: float = 5, area_max: float = 100) -> Op:
    """Like `decode|inception_crop(...)`, but decodes no more of a JPEG than it needs."""
    target, area = check_size(size), (area_min, area_max)
    check_area(area)

    def op(example: Example, seed: tf.Tensor) -> Example:
        encoded = example["image"]

        def partial() -> tuple[tf.Tensor, tf.Tensor]:
            box = sample_crop(tf.io.extract_jpeg_shape(encoded), area, seed)
            return tf.io.decode_and_crop_jpeg(encoded, box, channels=3), box

        def whole() -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            box = sample_crop(tf.shape(image), area, seed)
            begin, end = box[:2], box[:2] + box[2:]
            return tf.ensure_shape(image, (None, None, 3))[
                begin[0] : end[0], begin[1] : end[1]
            ], box

        source, box = tf.cond(tf.io.is_jpeg(encoded), partial, whole)
        source_from_image = affine.translation_matrix(*tf.unstack(-tf.cast(box[:2], tf.float32)))
        all_of_it = tf.concat([[0, 0], box[2:]], axis=0)
        return with_views(example, crops(source, source_from_image, all_of_it, target))

    return op


@register
def inception_crop(size: int, area_min: float = 5, area_max: float = 100) -> Op:
    """Cuts out a box of random area (in %) and aspect ratio, and resizes it to a square."""
    target, area = check_size(size), (area_min, area_max)
    check_area(area)

    def op(example: Example, seed: tf.Tensor) -> Example:
        image, matrix = pixels_of(example), example["view_from_image"]
        if image.shape.rank == 3:
            boxes = sample_crop(tf.shape(image), area, seed)
        else:
            boxes = sample_two_crops(tf.shape(image)[1:], (area, area), seed)
        return with_views(example, crops(image, matrix, boxes, target))

    return op


@register
def resize(size: int | tuple[int, int]) -> Op:
    """Resizes to a square, or to (height, width), whatever the aspect ratio."""
    target = check_size(size)

    def function(image, seed):
        height, width = tf.unstack(tf.shape(image)[:2])
        matrix = affine.crop_and_resize_matrix((0.0, 0.0), (height, width), target)
        return _resize(image, target), matrix

    return each_view(function)


@register
def resize_small(size: int) -> Op:
    """Resizes so that the shorter side has `size` pixels, keeping the aspect ratio."""
    check_size(size)

    def function(image, seed):
        old = tf.shape(image)[:2]
        scale = size / tf.reduce_min(old)
        new = tf.cast(tf.round(tf.cast(old, tf.float64) * scale), tf.int32)
        ratio = tf.unstack(tf.cast(new / old, tf.float32))
        return _resize(image, new), affine.matrix([[ratio[0], 0, 0], [0, ratio[1], 0]])

    return each_view(function)


@register
def central_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out the middle; an image that is too small is an error."""
    target = check_size(size)
    return each_view(lambda image, seed: _cut(image, (tf.shape(image)[:2] - target) // 2, target))


@register
def random_crop(size: int | tuple[int, int]) -> Op:
    """Cuts out a box of this size at a random place."""
    target = check_size(size)

    def function(image, seed):
        room = tf.shape(image)[:2] - target + 1
        begin = tf.random.stateless_uniform((2,), seed, 0, tf.int32.max, tf.int32) % room
        return _cut(image, begin, target)

    return each_view(function)


@register
def flip_lr() -> Op:
    """Flips left and right with probability 1/2."""

    def op(example: Example, seed: tf.Tensor) -> Example:
        views = views_of(example)
        flips = views.draw(seed, (1, 1)) < 0.5
        flip = affine.flip_matrix(tf.cast(views.size[1], tf.float32))
        matrix = tf.where(flips, flip, tf.eye(3))
        return with_views(example, views.moved(matrix))

    return op


@register
def value_range(low: float, high: float) -> Op:
    """Maps pixel values from [0, 255] to [low, high], as float32.

    Bytes stay bytes, a quarter of the memory to fill, copy and send, and become floats on the
    accelerator (`feed.device_batches`).
    """
    if not low < high:
        raise ValueError(f"low = {low} must be less than high = {high}")

    def op(example: Example, seed: tf.Tensor) -> Example:
        if example["image"].dtype == tf.uint8:
            return {**example, VALUE_RANGE: tf.constant([low, high], tf.float32)}
        image = tf.cast(pixels_of(example), tf.float32) * ((high - low) / 255) + low
        return {**example, "image": image}

    return op


@register
def onehot(num_classes: int, inkey: str = "label", outkey: str = "labels") -> Op:
    """Makes (num_classes,) float32 of a label, or of several."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes = {num_classes!r} must be a positive integer")

    def op(example: Example, seed: tf.Tensor) -> Example:
        _check_keys(example, (inkey,))
        labels = tf.one_hot(example[inkey], num_classes)
        if labels.shape.rank > 1:
            labels = tf.reduce_max(labels, axis=0)
        return {**example, outkey: labels}

    return op


@register
def keep(*keys: str) -> Op:
    """Keeps these entries of the example, and what says which values the image has."""

    def op(example: Example, seed: tf.Tensor) -> Example:
        _check_keys(example, keys)
        kept = {*keys, VALUE_RANGE} if "image" in keys else keys
        return {key: x for key, x in example.items() if key in kept}

    return op


@register
def copy(inkey: str, outkey: str) -> Op:
    """Copies an entry of the example."""

    def op(example: Example, seed: tf.Tensor) -> Example:
        _check_keys(example, (inkey,))
        return {**example, outkey: example[inkey]}

    return op


def _apply(function: ViewOp, image, view_from_image, seed):
    image, matrix = function(image, seed)
    return image, view_from_image if matrix is None else matrix @ view_from_image


def _resize(image: tf.Tensor, size) -> tf.Tensor:
    resized = tf.image.resize(image, size)
    return tf.cast(tf.round(resized), image.dtype)


def _cut(image, begin, size) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.control_dependencies(
        [tf.debugging.assert_non_negative(tf.shape(image)[:2] - size, "image too small to crop")]
    ):
        cut = image[begin[0] : begin[0] + size[0], begin[1] : begin[1] + size[1]]
    shift = tf.unstack(-tf.cast(begin, tf.float32))
    return tf.ensure_shape(cut, (*size, 3)), affine.translation_matrix(*shift)


def _check_keys(example: Example, keys: tuple[str, ...]):
    missing = [key for key in keys if key not in example]
    if missing:
        raise ValueError(f"the example has no {missing[0]!r}; it has {', '.join(sorted(example))}")
