"""Views of an image that are resampled only when their pixels are needed.

A crop, a flip or a rotation of `Views` only multiplies matrices: however many there are, pixels
are interpolated once, from the source image.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int, Shaped

from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.registry import Example, Lazy, pixels_of, require
from vmoe_prc.data.ops.resample import resample

# (new_from_view) -> pixels (h, w, C) of the view moved by that matrix, resampled from the source.
Resampled = Callable[[affine.Matrix], np.ndarray]
# (resampled) -> final pixels (h, w, C) of one view. A paint gets a function instead of pixels
# because it decides itself how the view has to be moved: RandAugment resamples the view with all
# of its geometric ops at once, and for some photometric ops a second time without the later ones.
Paint = Callable[[Resampled], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Views(Lazy):
    """The entry `image` of an example, one view or two, before it is resampled.

    Attributes:
      source: Pixels that are resampled; (2, H, W, C) if each view has its own.
      view_from_image: Map from coordinates of the decoded image to coordinates of the view, one
        matrix per view, without what `paints` move.
      view_from_source: Map from coordinates of `source` to coordinates of the view.
      boxes: (row, col, height, width) in pixels of `source` of each view's crop: no pixel outside
        of it is used.
      size: (height, width) of the views.
      paints: One per view, which makes its final pixels; None if views are only resampled.
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
        """Dtype of the pixels."""
        return self.source.dtype

    def moved(self, new_from_old: Float64[np.ndarray, "*views 3 3"]) -> "Views":
        """Returns the views moved by one matrix each."""
        return dataclasses.replace(
            self,
            view_from_image=new_from_old @ self.view_from_image,
            view_from_source=new_from_old @ self.view_from_source,
        )

    def write(self, out: Shaped[np.ndarray, "*views h w C"]) -> None:
        """Computes the pixels of the views into `out`."""
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
    """Returns the views of an example, to be moved; pixels that exist become their source.

    Args:
      example: An example with `image`.
    """
    require(example, "image")
    image = example["image"]
    if isinstance(image, Views) and image.paints is None:
        return image
    pixels, matrix = pixels_of(example)
    height, width = pixels.shape[-3:-1]
    boxes = np.broadcast_to((0, 0, height, width), (*matrix.shape[:-2], 4))
    still = np.broadcast_to(np.eye(3), matrix.shape)
    return Views(pixels, matrix, still, boxes, (height, width))


def with_views(example: Example, views: Views) -> Example:
    """Puts views into an example."""
    return {**example, "image": views, "view_from_image": views.view_from_image}
