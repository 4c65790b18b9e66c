"""Two random views of one image, which is decoded once."""

import tensorflow as tf

from vmoe_prc.data.image_ops import check_area, check_size, crop_and_resize, sample_crop
from vmoe_prc.data.pp import Example, Op, register


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
        image = example["image"]
        boxes = tf.stack(
            [
                tf.concat(
                    sample_crop(
                        tf.shape(image),
                        area,
                        tf.random.experimental.stateless_fold_in(seed, view),
                    ),
                    axis=0,
                )
                for view, area in enumerate((area0, area1))
            ]
        )  # (2, 4): row, col, height, width
        areas = boxes[:, 2] * boxes[:, 3]
        boxes = tf.cond(areas[0] <= areas[1], lambda: boxes, lambda: boxes[::-1])
        views = [crop_and_resize(image, box[:2], box[2:], target) for box in tf.unstack(boxes)]
        images, matrices = (tf.stack(parts) for parts in zip(*views, strict=True))
        return {
            **example,
            "image": images,
            "view_from_image": matrices @ example["view_from_image"],
        }

    return op
