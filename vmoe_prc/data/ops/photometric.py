"""RandAugment's ops on pixel values: (h, w, 3) uint8 NumPy arrays, with OpenCV.

A level of 1 is a magnitude of 10. The ops of `GLOBAL` depend on all pixels of `whole`, which has
the shape of the view; the others depend on single pixels, or on neighbours.

`PHOTOMETRIC` computes what the released programs compute (`autoaugment.py` of tensorflow/tpu, and
its copy in PRC), value for value: float32, truncated to bytes. Three of its ops are not what they
were meant to be; `CORRECTED` has these ops without the errors:

* `contrast` blends with a gray of number of pixels / 256, whatever the image, not with its mean;
* the threshold of `solarize` is a byte and wraps: at magnitudes 10 and 20 all pixels are inverted;
* `posterize` keeps the highest bit at magnitude 0, where no bit was meant to stay.
"""

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)
VALUES_INT = np.arange(256)
VALUES = VALUES_INT.astype(np.float32)
_SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / np.float32(13)

View = UInt8[np.ndarray, "h w 3"]


def autocontrast(view: View, level: float, whole: View) -> View:
    """Stretches each channel to [0, 255]."""
    tables = []
    for channel in cv2.split(whole):
        low, high = map(np.float32, cv2.minMaxLoc(channel)[:2])
        scale = np.float32(255) / (high - low) if high > low else np.float32(1)
        tables.append(VALUES * scale - low * scale if high > low else VALUES)
    return _map_channels(view, tables)


def equalize(view: View, level: float, whole: View) -> View:
    """Equalises the histogram of each channel, as PIL does."""
    tables = []
    for channel in cv2.split(whole):
        histogram = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        used = histogram[histogram > 0]
        step = int(used[:-1].sum()) // 255
        before = np.cumsum(histogram) - histogram + step // 2
        tables.append(before // step if step else VALUES)
    return _map_channels(view, tables)


def invert(view: View, level: float, whole: View | None = None) -> View:
    """Inverts each value: 255 - x."""
    return cv2.bitwise_not(view)


def posterize(view: View, level: float, whole: View | None = None) -> View:
    """Keeps the highest bits, 4 at level 1 and at least one; more than 8 are one, too."""
    dropped = min((8 - int(level * 4)) % 256, 7)
    return cv2.LUT(view, _table(VALUES_INT >> dropped << dropped))


def posterize_to_black(view: View, level: float, whole: View | None = None) -> View:
    """Keeps the highest bits, 4 at level 1, and none at level 0."""
    dropped = 8 - min(int(level * 4), 8)
    return cv2.LUT(view, _table(VALUES_INT >> dropped << dropped))


def solarize(view: View, level: float, whole: View | None = None) -> View:
    """Inverts pixels from a threshold on: 256 * level modulo 256, which is 0 at level 1."""
    return _solarize(view, int(level * 256) % 256)


def solarize_above(view: View, level: float, whole: View | None = None) -> View:
    """Inverts pixels from a threshold on, 256 * level: none from level 1 on."""
    return _solarize(view, int(level * 256))


def solarize_add(view: View, level: float, whole: View | None = None) -> View:
    """Brightens the dark half, by 110 at level 1."""
    return cv2.LUT(view, _table(np.where(VALUES < 128, VALUES + int(level * 110), VALUES)))


def color(view: View, level: float, whole: View | None = None) -> View:
    """Blends with the gray image; a factor above 1 saturates."""
    unit = view.astype(np.float32)
    unit *= np.float32(1 / 255)
    gray = np.trunc(cv2.transform(unit, LUMA[None]) * np.float32(255.5))
    return _blend(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), view, level)


def contrast(view: View, level: float, whole: View | None = None) -> View:
    """Blends with a gray that is the number of pixels / 256, at most 255."""
    gray = min(view.shape[0] * view.shape[1] // 256, 255)
    return cv2.LUT(view, _blend(np.float32(gray), VALUES, level))


def contrast_around_mean(view: View, level: float, whole: View) -> View:
    """Blends with the mean gray of `whole`."""
    gray = np.trunc(np.dot(cv2.mean(whole)[:3], LUMA))
    return cv2.LUT(view, _blend(np.float32(gray), VALUES, level))


def brightness(view: View, level: float, whole: View | None = None) -> View:
    """Multiplies by the factor."""
    return cv2.LUT(view, _blend(np.float32(0), VALUES, level))


def sharpness(view: View, level: float, whole: View | None = None) -> View:
    """Blends with the view smoothed by a 3x3 kernel; the outermost pixels stay."""
    if min(view.shape[:2]) < 3:
        return view.copy()
    values = view.astype(np.float32)
    smooth = cv2.filter2D(values, -1, _SMOOTHING)
    np.trunc(smooth, out=smooth)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[edge] = values[edge]
    return _blend(smooth, values, level)


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
CORRECTED: Mapping[str, Callable[..., View]] = {
    **PHOTOMETRIC,
    "posterize": posterize_to_black,
    "solarize": solarize_above,
    "contrast": contrast_around_mean,
}
GLOBAL = (autocontrast, equalize, contrast_around_mean)


def _solarize(view: View, threshold: int) -> View:
    return cv2.LUT(view, _table(np.where(threshold > VALUES, VALUES, 255 - VALUES)))


def _blend(
    other: np.ndarray | np.float32, values: np.ndarray, level: float
) -> UInt8[np.ndarray, "..."]:
    """Returns other + factor * (values - other) in bytes: a factor above 1 extrapolates."""
    factor = level * 1.8 + 0.1
    if factor == 1:
        return values.astype(np.uint8)
    blended = values.astype(np.float32)
    blended -= other
    blended *= np.float32(factor)
    blended += other
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _map_channels(view: View, tables: Sequence[np.ndarray]) -> View:
    # One channel after the other is faster than a table of three.
    channels = zip(cv2.split(view), tables, strict=True)
    return cv2.merge([cv2.LUT(channel, _table(table)) for channel, table in channels])
