"""Changes of a picture that the sliders of the page make, and where its patches go."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from vmoe_prc.alignment import match_patches
from vmoe_prc.arrays import Int
from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.resample import resample

# Smallest and largest value of each slider, as the page shows them.
RANGES = {
    "noise": (0.0, 0.5),
    "crop": (0.0, 0.8),
    "rotation": (-180.0, 180.0),
    "down": (-0.5, 0.5),
    "right": (-0.5, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes to a picture.

    Attributes:
      noise: Standard deviation of Gaussian noise, with a pixel range of 1.
      crop: Share of each side that is cut off; the rest is enlarged.
      rotation: Degrees, clockwise.
      down: Shift, in heights of the picture.
      right: Shift, in widths of the picture.
    """

    noise: float = 0.0
    crop: float = 0.0
    rotation: float = 0.0
    down: float = 0.0
    right: float = 0.0

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Changes":
        """Reads numbers by name.

        Raises:
          ValueError: If a name is unknown, or a value is no number in its range.
        """
        for name, value in values.items():
            if name not in RANGES:
                raise ValueError(f"{name!r:.40}: unknown; allowed: {', '.join(RANGES)}")
            low, high = RANGES[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{name} = {value!r:.40}: expected a number from {low} to {high}")
        return cls(**values)

    def matrix(self, size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
        """Returns the map of pixel coordinates (row, col, 1) from the picture to its view."""
        height, width = size
        cut = self.crop / 2
        box = (height * cut, width * cut, height * (1 - self.crop), width * (1 - self.crop))
        cropped = affine.crop_and_resize_matrix(box, size)
        turned = affine.rotation_matrix(math.radians(self.rotation), height, width)
        shifted = affine.translation_matrix(self.down * height, self.right * width)
        return shifted @ turned @ cropped

    def apply(self, picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Changes a picture; outside of it its border is repeated. The noise is always equal."""
        height, width = picture.shape[:2]
        changed = resample(
            picture, (0, 0, height, width), self.matrix((height, width)), (height, width)
        )
        if not self.noise:
            return changed
        noise = np.random.default_rng(0).normal(0, 255 * self.noise, picture.shape)
        return np.clip(np.rint(changed + noise), 0, 255).astype(np.uint8)


def matches(
    changes: Changes, size: tuple[int, int], patch_size: tuple[int, int]
) -> Int[np.ndarray, " P"]:
    """Returns, for each patch of a picture, the one that shows its centre after changes, or -1."""
    matrix = changes.matrix(size)[None].astype(np.float32)
    found = np.asarray(match_patches(matrix, size, patch_size, class_token=False))[0]
    partner = np.full(size[0] // patch_size[0] * (size[1] // patch_size[1]), -1)
    kept = found[:, 0] >= 0
    partner[found[kept, 0]] = found[kept, 1]
    return partner
