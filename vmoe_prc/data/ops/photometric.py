"""RandAugment's ops on pixel values: (h, w, 3) uint8 NumPy arrays, with OpenCV.

A level of 1 is a magnitude of 10. The ops of `GLOBAL` depend on all pixels of `whole`, which has
the shape of the view; the others depend on single pixels, or on neighbours.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import UInt8

LUMA = np.array([0.2989, 0.5870, 0.1140])
VALUES = np.arange(256)

View = UInt8[np.ndarray, "h w 3"]


def autocontrast(view: View, level: float, whole: View) -> View:
    """Stretches each channel to [0, 255]."""
    tables = []
    for histogram in _histograms(whole):
        used = np.flatnonzero(histogram)
        low, high = used[0], used[-1]
        tables.append((VALUES - low) * 255 / (high - low) if high > low else VALUES)
    return cv2.LUT(view, _table(np.stack(tables, axis=-1)[None]))


def equalize(view: View, level: float, whole: View) -> View:
    """Equalises the histogram of each channel, as PIL does."""
    tables = []
    for histogram in _histograms(whole):
        used = histogram[histogram > 0]
        step = int(used[:-1].sum()) // 255
        before = np.cumsum(histogram) - histogram + step // 2
        tables.append(before // step if step else VALUES)
    return cv2.LUT(view, _table(np.stack(tables, axis=-1)[None]))


def invert(view: View, level: float, whole: View | None = None) -> View:
    """Inverts each value: 255 - x."""
    return cv2.bitwise_not(view)


def posterize(view: View, level: float, whole: View | None = None) -> View:
    """Keeps the highest bits, 4 at level 1."""
    dropped = 8 - min(max(int(level * 4), 0), 8)
    return cv2.LUT(view, _table(VALUES >> dropped << dropped))


def solarize(view: View, level: float, whole: View | None = None) -> View:
    """Inverts pixels from a threshold on, 256 at level 1."""
    return cv2.LUT(view, _table(np.where(int(level * 256) > VALUES, VALUES, 255 - VALUES)))


def solarize_add(view: View, level: float, whole: View | None = None) -> View:
    """Brightens the dark half, by 110 at level 1."""
    return cv2.LUT(view, _table(np.where(VALUES < 128, VALUES + int(level * 110), VALUES)))


def color(view: View, level: float, whole: View | None = None) -> View:
    """Blends with the gray image; a factor above 1 saturates."""
    factor = _factor(level)
    return cv2.transform(view, factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1)))


def contrast(view: View, level: float, whole: View) -> View:
    """Blends with the mean gray of `whole`."""
    mean = np.dot(cv2.mean(whole)[:3], LUMA)
    return cv2.LUT(view, _table(mean + _factor(level) * (VALUES - mean)))


def brightness(view: View, level: float, whole: View | None = None) -> View:
    """Multiplies by the factor."""
    return cv2.LUT(view, _table(_factor(level) * VALUES))


def sharpness(view: View, level: float, whole: View | None = None) -> View:
    """Blends with the view smoothed by a 3x3 kernel; the outermost pixels stay."""
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    identity = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    factor = _factor(level)
    sharp = cv2.filter2D(view, -1, (1 - factor) * smooth + factor * identity)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharp[border] = view[border]
    return sharp


PHOTOMETRIC: Mapping[str, Callable[..., View]] = {
    function.__name__: function
    for function in (
        autocontrast,
        equalize,
        invert,
        posterize,
        solarize,
        solarize_add,
        color,
        contrast,
        brightness,
        sharpness,
    )
}
GLOBAL = ("autocontrast", "equalize", "contrast")


def _factor(level: float) -> float:
    """Returns the weight of the view in a blend: 1 is the view, above 1 extrapolates."""
    return level * 1.8 + 0.1


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _histograms(view: View) -> list[np.ndarray]:
    return [
        cv2.calcHist([view], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        for channel in range(3)
    ]
