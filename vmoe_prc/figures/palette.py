"""Colours of experts, and styles of lines, that colour-blind readers can tell apart."""

import functools
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex

from vmoe_prc.arrays import Array, Float

# Okabe and Ito, "Color Universal Design" (2008), without black, which a dark image hides.
_OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")

# Machado et al., "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1: linear RGB as seen without green or red cones.
_COLOR_VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
_XYZ_FROM_RGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


@functools.cache
def _palette(num_experts: int) -> tuple[tuple[float, ...], ...]:
    chosen = [[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in _OKABE_ITO]
    chosen = np.asarray(chosen)[:num_experts]
    levels = np.linspace(0, 1, 18)
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness, *ab = lab_from_rgb(candidates).T
    chroma = np.hypot(*ab)
    # Neither neon nor gray: gray is for patches without a match.
    usable = (lightness > 25) & (lightness < 92) & (chroma > 18) & (chroma < 80)
    candidates = candidates[usable]
    nearest = color_distance(candidates, chosen).min(axis=1)
    while len(chosen) < num_experts:
        farthest = candidates[np.argmax(nearest)]
        chosen = np.concatenate([chosen, farthest[None]])
        nearest = np.minimum(nearest, color_distance(candidates, farthest[None])[:, 0])
    return tuple(map(tuple, chosen))


def expert_colors(num_experts: int) -> Float[np.ndarray, "E 3"]:
    """Returns a distinct colour for each expert.

    The first 7 are Okabe and Ito's; each further one is the colour farthest from all colours
    before it, so that adding experts changes no colour.

    Args:
      num_experts: E.

    Returns:
      (E, 3) sRGB in [0, 1].
    """
    return np.asarray(_palette(num_experts), np.float64).reshape(-1, 3)


class LineStyle(NamedTuple):
    """Style of the lines of an experiment, equal in every figure of a page.

    Attributes:
      color: `#rrggbb`.
      dashes: 'solid', 'dashed' or 'dotted', as Matplotlib and CSS call it.
      marker: Marker of Matplotlib.
    """

    color: str
    dashes: str
    marker: str


def line_styles(count: int) -> list[LineStyle]:
    """Returns `count` styles; the first ones do not change with `count`.

    Colours repeat after 5 lines, then with other dashes, and markers after 6.
    """
    # Without yellow, which is invisible on white.
    colors = [to_hex(color) for color in expert_colors(6)[[4, 0, 5, 2, 1]]]
    dashes = ("solid", "dashed", "dotted")
    return [LineStyle(colors[i % 5], dashes[i // 5 % 3], "osD^vP"[i % 6]) for i in range(count)]


def color_distance(a: Float[Array, "N 3"], b: Float[Array, "M 3"]) -> Float[Array, "N M"]:
    """CIELAB distance of sRGB colours, for the reader who sees the smallest difference.

    The minimum over normal sight, deuteranopia and protanopia; 2.3 is just noticeable.
    """
    distances = []
    for vision in _COLOR_VISION.values():
        lab_a, lab_b = (lab_from_rgb(rgb, vision) for rgb in (a, b))
        distances.append(np.linalg.norm(lab_a[:, None] - lab_b[None], axis=-1))
    return np.min(distances, axis=0)


def lab_from_rgb(
    rgb: Float[Array, "N 3"], vision: Float[Array, "3 3"] = _COLOR_VISION["normal"]
) -> Float[Array, "N 3"]:
    """CIELAB (D65) of sRGB colours, seen with `vision`, a matrix on linear RGB."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ vision.T, 0, 1)
    x, y, z = (linear @ (_XYZ_FROM_RGB / _XYZ_FROM_RGB.sum(axis=1, keepdims=True)).T).T
    fx, fy, fz = (
        np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29) for t in (x, y, z)
    )
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)
