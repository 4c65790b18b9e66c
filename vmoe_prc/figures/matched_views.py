"""The figure of sample views: what training sees, and which patches of two views match."""

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.figures.panels import (
    MEDIUM,
    Margins,
    headline,
    place_panels,
    plain_text,
    show_image,
    show_routing,
)

# Inches.
_PANEL, _GAP, _ROW_GAP, _LINE = 1.9, 0.1, 0.3, 0.15
_TOP, _BOTTOM, _SIDE = 1.05, 0.2, 0.36


def matched_views_figure(
    views: Float[Array, "N 2 H W C"],
    pairs: Int[Array, "N P 2"],
    patch_size: tuple[int, int],
    labels: Sequence[str],
) -> Figure:
    """Draws two views of each image; matched patches have the same colour.

    Args:
      views: (N, 2, H, W, C) in [-1, 1], C = 3 or 1.
      pairs: (N, P, 2) patches (view 0, view 1) of `match_patches` without class tokens, in
        row-major order; (-1, -1) for no match.
      patch_size: Height and width of a patch in pixels.
      labels: N titles of the rows.
    """
    views, pairs = np.asarray(views), np.asarray(pairs)
    height, width = views.shape[2:4]
    grid = height // patch_size[0], width // patch_size[1]
    lefts = [0, _PANEL + _GAP, 2 * _PANEL + 4 * _GAP, 3 * _PANEL + 5 * _GAP]
    figure, axes = _rows(len(views), lefts, height / width)
    colors = _place_colors(grid)
    for row, images, matches, label in zip(axes, views, pairs, labels, strict=True):
        found = matches[matches[:, 0] >= 0]
        for view in range(2):
            show_image(row[view], images[view])
            source, vivid = np.zeros(grid, int), np.zeros(grid, bool)
            source.flat[found[:, view]] = found[:, 0]
            vivid.flat[found[:, view]] = True
            show_routing(row[2 + view], images[view], source, vivid, colors)
        row[0].set_ylabel(plain_text(label, _PANEL * height / width), fontsize=MEDIUM, color="0.25")
        row[2].set_title(
            f"{len(found)} of {len(matches)} patches matched",
            fontsize=MEDIUM,
            color="0.35",
            pad=3,
            loc="left",
        )
    for axis, title in zip(axes[0], ("view 0", "view 1"), strict=False):
        axis.set_title(title, fontsize=MEDIUM, color="0.35", pad=3)
    share = (pairs[..., 0] >= 0).mean()
    text = f"matched patches have the same colour; {share:.0%} have a match, the others are hatched"
    headline(figure, _SIDE, "Two views of each image", text)
    return figure


def images_figure(
    images: Float[Array, "N H W C"], labels: Sequence[str], title: str, text: str
) -> Figure:
    """Draws images of [-1, 1], four in a row, below a title and a line of text.

    Args:
      images: (N, H, W, C) in [-1, 1], C = 3 or 1.
      labels: N titles of the images, of one or more lines.
      title: Title of the figure.
      text: The line below it.
    """
    images = np.asarray(images)
    columns = min(4, max(len(images), 1))
    lefts = [i * (_PANEL + _GAP) for i in range(max(columns, 2))]
    lines = max((label.count("\n") for label in labels), default=0)
    ratio = images.shape[1] / images.shape[2]
    figure, axes = _rows(-(-max(len(images), 1) // columns), lefts, ratio, lines)
    for i, panel in enumerate(panel for row in axes for panel in row[:columns]):
        if i >= len(images):
            panel.set_axis_off()
            continue
        show_image(panel, images[i])
        panel.set_title(plain_text(labels[i], _PANEL), fontsize=MEDIUM, color="0.35", pad=3)
    for row in axes:
        for panel in row[columns:]:
            panel.set_axis_off()
    headline(figure, _SIDE, title, text)
    return figure


def _rows(
    count: int, lefts: Sequence[float], ratio: float, more_lines: int = 0
) -> tuple[Figure, list]:
    """Makes rows of panels, with room for `more_lines` than one above each."""
    room = _LINE * more_lines
    tops = [i * (_PANEL * ratio + _ROW_GAP + room) for i in range(count)]
    margins = Margins(_TOP + room, _BOTTOM, _SIDE, _SIDE)
    return place_panels(lefts, tops, (_PANEL, _PANEL * ratio), margins)


def _place_colors(grid: tuple[int, int]) -> Float[np.ndarray, "P 3"]:
    """Returns a colour for each place: hue by column, lightness by row."""
    rows, cols = grid
    return np.array(
        [
            colorsys.hls_to_rgb(
                0.85 * col / max(cols - 1, 1), 0.3 + 0.4 * row / max(rows - 1, 1), 1
            )
            for row in range(rows)
            for col in range(cols)
        ]
    )
