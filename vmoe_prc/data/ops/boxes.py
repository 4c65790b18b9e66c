"""Crops and flips that are drawn first and applied later, as big_vision writes them.

`inception_box|crop_box` applies one box to several entries, `randu|det_fliplr` one flip.
"""

import numpy as np

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.image_ops import check_area, sample_crop
from vmoe_prc.data.ops.registry import Example, Op, PreprocessError, computed, pixels_of, require


@OPS.register()
def inception_box(
    area: tuple[float, float] = (0.05, 1.0), outkey: str = "box", inkey: str = "image"
) -> Op:
    """Draws a box with the area and aspect ratio of Inception's crops.

    Args:
      area: Smallest and largest area, as a share of the image.
      outkey: Entry of the box: (row, col, height, width) as shares of the image, float64.
      inkey: Entry of the image.
    """
    percent = area[0] * 100, area[1] * 100
    check_area(percent)

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, inkey)
        shape = np.shape(computed(example[inkey]))[:2]
        if len(shape) < 2:
            raise PreprocessError("inception_box needs pixels: decode the image first")
        box = np.divide(sample_crop(shape, percent, rng), (*shape, *shape))
        return {**example, outkey: box}

    return op


@OPS.register()
def crop_box(boxkey: str = "box") -> Op:
    """Cuts out the box that `inception_box` drew."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, boxkey)
        image, matrix = pixels_of(example)
        height, width = image.shape[:2]
        scale = (height, width, height, width)
        row, col, rows, cols = np.floor(example[boxkey] * scale + 1e-6).astype(int).tolist()
        cut = image[row : row + rows, col : col + cols]
        moved = affine.translation_matrix(-row, -col) @ matrix
        return {**example, "image": cut, "view_from_image": moved}

    return op


@OPS.register()
def det_fliplr(randkey: str = "fliplr") -> Op:
    """Flips left and right if the number that `randu` drew is above 1/2."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, randkey)
        image, matrix = pixels_of(example)
        if example[randkey] <= 0.5:
            return example
        moved = affine.flip_matrix(image.shape[-2]) @ matrix
        return {**example, "image": image[..., ::-1, :], "view_from_image": moved}

    return op
