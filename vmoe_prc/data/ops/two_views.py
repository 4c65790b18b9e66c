"""Two random views of one image, which is decoded once."""

import numpy as np

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops.image_ops import check_area, check_size, crops, resampling, sample_crop
from vmoe_prc.data.ops.registry import Example, Op, PreprocessError, pixels_of
from vmoe_prc.data.ops.views import with_views


@OPS.register()
def two_views(
    size: int,
    area0: tuple[float, float] = (5, 100),
    area1: tuple[float, float] = (5, 100),
    truncate: bool = False,
) -> Op:
    """Cuts two boxes out of the image and resizes them to squares.

    The view of the smaller box is view 0: its patches are finer, so that the centre of
    each lies in at most one patch of view 1.

    Args:
      size: Side of the views in pixels.
      area0: Smallest and largest area of the first box, in % of the image.
      area1: The same of the second box.
      truncate: Whether fractions of bytes are dropped, as in PRC's program, not rounded.
    """
    target = check_size(size)
    check_area(area0)
    check_area(area1)
    resample = resampling(target, "bilinear", False, truncate)

    def op(example: Example, rng: np.random.Generator) -> Example:
        image, matrix = pixels_of(example)
        if image.ndim != 3:
            raise PreprocessError("two_views needs one image, and this has views already")
        boxes = [sample_crop(image.shape[:2], area, rng) for area in (area0, area1)]
        # Equal areas stay in the order in which they were drawn.
        boxes.sort(key=lambda box: box[2] * box[3])
        return with_views(example, crops(image, matrix, np.array(boxes), target, resample))

    return op
