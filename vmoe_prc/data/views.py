"""Views of an image that are not resampled before their pixels are needed.

A crop, a flip or a rotation of `Views` is a product of matrices: however many there are, pixels
are interpolated once, from the image itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from vmoe_prc.data import resample
from vmoe_prc.data.pp import Example, Lazy

# Moves a view by a matrix and resamples it, (h, w, C).
Resampled = Callable[[np.ndarray], np.ndarray]
# (Resampled, the row of each tensor of `paint_args`...) -> view (h, w, C)
Paint = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Views(Lazy):
    """The entry `image` of an example, before it is resampled.

    Attributes:
      source: (H, W, C), the decoded image; (2, H, W, C) if each view has its own.
      source_from_image: (3, 3) or (2, 3, 3), how the source came from the image.
      view_from_image: (3, 3) or (2, 3, 3) for one or two views; without what `paint` moves.
      boxes: (4,) or (2, 4) int32, rows of (row, col, height, width): the crops of the source.
      size: (height, width) of the views, static or not.
      paint: Resamples a view and changes its pixels; None only resamples.
      paint_args: Tensors with a row for each view.
    """

    source: tf.Tensor
    source_from_image: tf.Tensor
    view_from_image: tf.Tensor
    boxes: tf.Tensor
    size: tuple[Any, Any]
    paint: Paint | None = None
    paint_args: Sequence[tf.Tensor] = ()

    @property
    def count(self) -> int | None:
        """Two views, or None: one, without an axis for it."""
        return 2 if self.view_from_image.shape.rank == 3 else None

    @property
    def dtype(self) -> tf.DType:
        """That of the pixels."""
        return self.source.dtype

    def draw(self, seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """Draws numbers from [0, 1) for each view, (*shape) or (2, *shape) float32."""
        views = [] if self.count is None else [self.count]
        return tf.random.stateless_uniform([*views, *shape], seed)

    def moved(self, new_from_old: tf.Tensor) -> "Views":
        """Moves the pixels of each view; `new_from_old` is (3, 3) or (2, 3, 3)."""
        return dataclasses.replace(self, view_from_image=new_from_old @ self.view_from_image)

    def painted(self, paint: Paint, *args: tf.Tensor) -> "Views":
        """Leaves the pixels to `paint`, with `args` as `paint_args`."""
        return dataclasses.replace(self, paint=paint, paint_args=args)

    def tensor(self) -> tf.Tensor:
        """Resamples: (h, w, C) or (2, h, w, C), of the source's dtype."""
        pixels = tf.numpy_function(
            self._render,
            [
                self.source,
                self.source_from_image,
                self.view_from_image,
                self.boxes,
                tf.stack(self.size),
                *self.paint_args,
            ],
            self.source.dtype,
            stateful=False,
        )
        shape = [side if isinstance(side, int) else None for side in self.size]
        views = [] if self.count is None else [self.count]
        return tf.ensure_shape(pixels, [*views, *shape, self.source.shape[-1]])

    def _render(self, source, source_from_image, view_from_image, boxes, size, *args):
        """Like `tensor`, of NumPy arrays, which are TensorFlow's own memory: read only."""
        count, size = self.count or 1, tuple(size.tolist())
        sources = source if source.ndim == 4 else [source] * count
        view_from_source = view_from_image.astype(np.float64) @ np.linalg.inv(source_from_image)
        view_from_source = view_from_source.reshape(count, 3, 3)
        views = []
        for i, box in enumerate(boxes.reshape(count, 4).tolist()):
            resampled = functools.partial(_resampled, sources[i], box, view_from_source[i], size)
            rows = [arg if self.count is None else arg[i] for arg in args]
            views.append(self.paint(resampled, *rows) if self.paint else resampled(np.eye(3)))
        return np.stack(views) if self.count else views[0]


def _resampled(source, box, view_from_source, size, moves):
    return resample.resample(source, box, moves @ view_from_source, size)


def views_of(example: Example) -> Views:
    """Returns the views of an example whose pixels may still move."""
    image, matrix = example["image"], example["view_from_image"]
    if isinstance(image, Views) and image.paint is None:
        return image
    pixels = pixels_of(example)
    static, dynamic = pixels.shape[-3:-1], tf.shape(pixels)[-3:-1]
    box = tf.concat([tf.zeros_like(dynamic), dynamic], axis=0)
    return Views(
        source=pixels,
        source_from_image=matrix,
        view_from_image=matrix,
        boxes=box if pixels.shape.rank == 3 else tf.stack([box, box]),
        size=tuple(n if n is not None else dynamic[i] for i, n in enumerate(static)),
    )


def pixels_of(example: Example) -> tf.Tensor:
    """Returns the image or the views of an example as a tensor."""
    image = example["image"]
    return image.tensor() if isinstance(image, Views) else image


def with_views(example: Example, views: Views) -> Example:
    """Puts views into an example."""
    return {**example, "image": views, "view_from_image": views.view_from_image}
