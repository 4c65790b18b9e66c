"""Ops on pixel values besides RandAugment's: gray, colour jitter, blur, cutout.

Each view has its own randomness, and stays in bytes.
"""

import cv2
import numpy as np

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops.image_ops import each_view
from vmoe_prc.data.ops.registry import Op

# ITU-R BT.601, as `tf.image.rgb_to_grayscale` has it.
_LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)
GRAY = 128


@OPS.register()
def rgb_to_gray() -> Op:
    """Replaces the colours by three equal channels of gray."""
    return each_view(lambda image, rng: (_gray(image), None))


@OPS.register()
def rgb_to_grayscale_to_rgb() -> Op:
    """big_vision's name for `rgb_to_gray`."""
    return rgb_to_gray()


@OPS.register()
def color_jitter(strength: float = 1.0) -> Op:
    """Changes brightness, contrast, saturation and hue in random order (SimCLR, 2002.05709).

    Args:
      strength: At 1 the first three change by factors of 0.2 to 1.8, and the hue by up to a
        fifth of the circle.
    """
    if not 0 <= strength <= 1.25:
        raise ValueError(f"strength = {strength} must be from 0 to 1.25")

    def function(image, rng):
        x = image.astype(np.float32)
        factors = 1 + 0.8 * strength * rng.uniform(-1, 1, 3)
        shift = 0.2 * strength * rng.uniform(-1, 1)
        for change in rng.permutation(4):
            if change == 3:
                x = _turn_hue(x, shift)
            else:
                gray = (0.0, x.mean(axis=(0, 1)), x @ _LUMA)[change]
                gray = gray[..., None] if change == 2 else gray
                x = gray + factors[change] * (x - gray)
            x = np.clip(x, 0, 255).astype(np.float32)
        return np.rint(x).astype(np.uint8), None

    return each_view(function)


@OPS.register()
def gaussian_blur_image(size: int) -> Op:
    """Blurs by a Gaussian of 0.1 to 2 pixels and the width `size // 10`, as PRC's program."""
    width = size // 10 // 2 * 2 + 1

    def function(image, rng):
        sigma = rng.uniform(0.1, 2.0)
        blurred = cv2.GaussianBlur(image, (width, width), sigma, borderType=cv2.BORDER_CONSTANT)
        return blurred, None

    return each_view(function)


@OPS.register()
def cutout(size: int) -> Op:
    """Covers a square of gray at a random place, which may reach over the edge (1708.04552).

    Args:
      size: Side of the square in pixels.
    """
    if size < 0:
        raise ValueError(f"size = {size} must not be negative")

    def function(image, rng):
        row, col = (int(rng.random() * side) - size // 2 for side in image.shape[:2])
        covered = image.copy()
        covered[max(row, 0) : max(row + size, 0), max(col, 0) : max(col + size, 0)] = GRAY
        return covered, None

    return each_view(function)


def _gray(image: np.ndarray) -> np.ndarray:
    # Rounded as TensorFlow does.
    gray = (image.astype(np.float32) / np.float32(255) @ _LUMA * np.float32(255.5)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _turn_hue(image: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * shift) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
