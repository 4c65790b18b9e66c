"""Views of an image that are not resampled before their pixels are needed.

A crop, a flip or a rotation of `Views` is a product of matrices: however many there are, pixels
are interpolated once, from the image itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int, Shaped

from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.registry import Example, Lazy, computed
from vmoe_prc.data.ops.resample import resample

# Moves a view by a matrix and resamples it, (h, w, C).
Resampled = Callable[[affine.Matrix], np.ndarray]
# Makes the pixels of a view, (h, w, C).
Paint = Callable[[Resampled], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Views(Lazy):
    """The entry `image` of an example, before it is resampled.

    Attributes:
      source: The decoded image; (2, H, W, C) if each view has its own.
      view_from_image: One matrix, or one for each of two views; without what `paints` move.
      view_from_source: The same for coordinates of the source.
      boxes: Rows of (row, col, height, width): the crops of the source.
      size: (height, width) of the views.
      paints: Resamples each view and changes its pixels; None only resamples.
    """

    source: Shaped[np.ndarray, "*sources H W C"]
    view_from_image: Float64[np.ndarray, "*views 3 3"]
    view_from_source: Float64[np.ndarray, "*views 3 3"]
    boxes: Int[np.ndarray, "*views 4"]
    size: tuple[int, int]
    paints: Sequence[Paint] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """(2,) for two views, () for one."""
        return self.view_from_image.shape[:-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, C) or (2, h, w, C)."""
        return (*self.axes, *self.size, self.source.shape[-1])

    @property
    def dtype(self) -> np.dtype:
        """That of the pixels."""
        return self.source.dtype

    def moved(self, new_from_old: Float64[np.ndarray, "*views 3 3"]) -> "Views":
        """Moves the pixels of each view."""
        return dataclasses.replace(
            self,
            view_from_image=new_from_old @ self.view_from_image,
            view_from_source=new_from_old @ self.view_from_source,
        )

    def write(self, out: Shaped[np.ndarray, "*views h w C"]) -> None:
        """Resamples."""
        matrices = self.view_from_source.reshape(-1, 3, 3)
        outs = out.reshape(-1, *out.shape[-3:])
        for i, box in enumerate(self.boxes.reshape(-1, 4).tolist()):
            source = self.source[i] if self.source.ndim == 4 else self.source
            if self.paints is None:
                resample(source, box, matrices[i], self.size, outs[i])
            else:
                resampled = functools.partial(_resampled, source, box, matrices[i], self.size)
                outs[i] = self.paints[i](resampled)


def _resampled(source, box, view_from_source, size, moves):
    return resample(source, box, moves @ view_from_source, size)


def views_of(example: Example) -> Views:
    """Returns the views of an example whose pixels may still move."""
    image, matrix = example["image"], example["view_from_image"]
    if isinstance(image, Views) and image.paints is None:
        return image
    pixels = computed(image)
    height, width = pixels.shape[-3:-1]
    boxes = np.broadcast_to((0, 0, height, width), (*matrix.shape[:-2], 4))
    still = np.broadcast_to(np.eye(3), matrix.shape)
    return Views(pixels, matrix, still, boxes, (height, width))


def with_views(example: Example, views: Views) -> Example:
    """Puts views into an example."""
    return {**example, "image": views, "view_from_image": views.view_from_image}
