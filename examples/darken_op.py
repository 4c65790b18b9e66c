"""A preprocessing op of your own: images lose a random part of their brightness."""

import numpy as np

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops.registry import Example, Op, computed, require


@OPS.register()
def darken(darkest: float = 0.5) -> Op:
    """Multiplies each image by a random factor.

    Args:
      darkest: Smallest factor, from 0 to 1.
    """
    if not 0 <= darkest <= 1:
        raise ValueError(f"darkest = {darkest}: expected a number from 0 to 1")

    def op(example: Example, rng: np.random.Generator) -> Example:
        require(example, "image")
        factor = rng.uniform(darkest, 1)
        # A geometric op would change `view_from_image` as well.
        return {**example, "image": (computed(example["image"]) * factor).astype(np.uint8)}

    return op
