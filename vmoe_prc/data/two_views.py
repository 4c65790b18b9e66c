"""Two random views of one image, which is decoded once."""

import tensorflow as tf

from vmoe_prc.data.image_ops import check_area, check_size, crops, sample_two_crops
from vmoe_prc.data.pp import Example, Op, register
from vmoe_prc.data.views import pixels_of, with_views


@register
def two_views(
    size: int,
    area0: tuple[float, float] = (5, 100),
    area1: tuple[float, float] = (5, 100),
) -> Op:
    """Cuts two boxes out of the image and resizes them to squares.

    The view of the smaller box is view 0: its patches are finer, so that the centre of
    each lies in at most one patch of view 1.

    Args:
      size: Side of the views in pixels.
      area0: Smallest and largest area of the first box, in % of the image.
      area1: The same of the second box.
    """
    target = check_size(size)
    check_area(area0)
    check_area(area1)

    def op(example: Example, seed: tf.Tensor) -> Example:
        image = pixels_of(example)
        boxes = sample_two_crops(tf.shape(image), (area0, area1), seed)
        areas = boxes[:, 2] * boxes[:, 3]
        boxes = tf.where(areas[0] <= areas[1], boxes, boxes[::-1])
        return with_views(example, crops(image, example["view_from_image"], boxes, target))

    return op
