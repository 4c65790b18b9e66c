"""Parts of routing figures: panels of images, tinted patches, legends.

Sizes are in inches, so that panels and letters keep their size as rows are added.
"""

import math
import unicodedata
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.workdir.atomic import atomic_write

_TINT, _PALE_TINT = 0.68, 0.20
_LEGEND_ROW, _LEGEND_COLUMN = 0.205, 0.93
# Side of the square of a second choice, as a share of the side of its patch.
_INSET = 0.46
SMALL, MEDIUM, LARGE = 8.5, 9.0, 13.0
DIFFERENT_COLOR = "#C1121F"
# Width of a letter in the font of figures, as a share of its size, on average.
_LETTER_WIDTH = 0.62
# Letters of the name of a run in a line of text.
NAME_LETTERS = 14


class Margins(NamedTuple):
    """Margins around panels, in inches."""

    top: float
    bottom: float
    left: float
    right: float


def place_panels(
    left: Sequence[float], down: Sequence[float], panel: tuple[float, float], margins: Margins
) -> tuple[Figure, list[list[Axes]]]:
    """Makes a figure of rows of panels.

    Args:
      left: Distance of each panel of a row from the left margin, in inches.
      down: Distance of each row from the top margin.
      panel: Width and height of a panel.
      margins: Margins around them.

    Returns:
      The figure, bound to no window and not known to pyplot, and its panels by row.
    """
    width = margins.left + left[-1] + panel[0] + margins.right
    height = margins.top + down[-1] + panel[1] + margins.bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def add(x, y):
        bottom = height - margins.top - y - panel[1]
        box = ((margins.left + x) / width, bottom / height, panel[0] / width, panel[1] / height)
        return figure.add_axes(box)

    return figure, [[add(x, y) for x in left] for y in down]


def plain_text(text: str, inches: float = math.inf, size: float = MEDIUM) -> str:
    r"""Prepares a name of the user for Matplotlib, which reads "$\alpha$" as a formula.

    Args:
      text: One or more lines.
      inches: Room for a line; longer ones lose their middle, as runs often differ at the end.
      size: Size of the letters in points.
    """
    if inches < math.inf:
        most = max(int(72 * inches / (_LETTER_WIDTH * size)), 3)
        text = "\n".join(shorten(line, most) for line in text.split("\n"))
    return text.replace("$", r"\$")


def shorten(text: str, most: int) -> str:
    """Leaves out the middle of a line, so that it is at most as wide as `most` Latin letters."""
    if sum(map(_letters, text)) <= most:
        return text
    start, end, left = 0, len(text), most - 1
    while True:
        at_start = start <= len(text) - end
        left -= _letters(text[start] if at_start else text[end - 1])
        if left < 0:
            return f"{text[:start]}\N{HORIZONTAL ELLIPSIS}{text[end:]}"
        start, end = (start + 1, end) if at_start else (start, end - 1)


def _letters(letter: str) -> int:
    """Returns the width of a letter, in Latin ones."""
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def headline(figure: Figure, left: float, title: str, text: str) -> None:
    """Writes a title and a line below it at the top, `left` inches from the left."""
    width, height = figure.get_size_inches()
    # Bold letters are wider.
    for y, line, size, color, weight, wider in (
        (0.2, title, LARGE, "black", "bold", 1.15),
        (0.47, text, 10.5, "0.25", "normal", 1.0),
    ):
        style = {"fontsize": size, "color": color, "weight": weight, "va": "top"}
        whole = plain_text(line, width - 2 * left, wider * size)
        figure.text(left / width, 1 - y / height, whole, fontdict=style)


def supertitle(figure: Figure, text: str, size: float, **style: Any) -> None:
    """Writes the title of a figure, whose name of a run is shortened to its width."""
    wider = 1.15 if style.get("weight") == "bold" else 1
    room = figure.get_size_inches()[0] - 0.2
    figure.suptitle(plain_text(text, room, wider * size), fontsize=size, **style)


def to_display(images: Float[Array, "*any"], value_range: tuple[float, float]) -> np.ndarray:
    """Maps pixels from the (low, high) of their data to [-1, 1], which figures show."""
    low, high = value_range
    return 2 * (np.asarray(images, np.float32) - low) / (high - low) - 1


def class_titles(classes: Int[np.ndarray, " N"], names: Sequence[str] | None = None) -> list[str]:
    """Returns a title for each image: the name of its class, or "class 4" where that is unknown.

    Args:
      classes: (N,) classes; -1 for an image without labels.
      names: Names by class. A name of only digits, as data sets without names have, is written
        as "class 4".
    """

    def title(label: int) -> str:
        if label < 0:
            return "no label"
        name = names[label] if names and label < len(names) else str(label)
        return f"class {name}" if name.isdigit() else name

    return [title(int(label)) for label in classes]


def show_image(axes: Axes, image: Float[np.ndarray, "H W C"]) -> None:
    """Shows an image of [-1, 1], C = 3 or 1."""
    height, width, _ = image.shape
    rgb = np.broadcast_to(image, (height, width, 3))
    axes.imshow(
        np.clip((rgb.astype(np.float32) + 1) / 2, 0, 1),
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color="0.6")


def show_routing(
    axes: Axes,
    image: Float[np.ndarray, "H W C"],
    experts: Int[Array, "rows cols"],
    vivid: Bool[Array, "rows cols"],
    colors: Float[Array, "E 3"],
) -> None:
    """Shows an image in gray, each patch tinted by its expert.

    Args:
      axes: The panel.
      image: (H, W, C) in [-1, 1].
      experts: (rows, cols) expert of each patch.
      vivid: (rows, cols), False for patches that are drawn pale and hatched.
      colors: (E, 3) sRGB by expert.
    """
    height, width, _ = image.shape
    gray = (image.astype(np.float32).mean(axis=-1, keepdims=True) + 1) / 2
    gray = 0.25 + 0.7 * np.clip(gray, 0, 1)  # black would hide its tint
    patch_height, patch_width = _patch_size(image, experts)

    def per_pixel(values):  # (rows, cols, ...) -> (H, W, ...)
        values = values.reshape(*experts.shape, -1)
        return values.repeat(patch_height, axis=0).repeat(patch_width, axis=1)

    tint = per_pixel(colors[experts])
    bright = (1 - _TINT) * gray + _TINT * tint
    pale = 0.55 + 0.45 * ((1 - _PALE_TINT) * gray + _PALE_TINT * tint)
    show_image(axes, 2 * np.where(per_pixel(vivid), bright, pale) - 1)

    rows, cols = np.arange(0, height, patch_height), np.arange(0, width, patch_width)
    grid = [((0, y), (width, y)) for y in rows[1:]] + [((x, 0), (x, height)) for x in cols[1:]]
    axes.add_collection(LineCollection(grid, colors="white", linewidths=0.5))
    y, x = (corner[~vivid] for corner in np.meshgrid(rows, cols, indexing="ij"))
    hatch = np.stack([x, y + patch_height, x + patch_width, y], axis=-1).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(hatch), colors="0.62", linewidths=0.6))


def show_second_choices(
    axes: Axes,
    image: Float[np.ndarray, "H W C"],
    experts: Int[Array, "rows cols"],
    shown: Bool[Array, "rows cols"],
    colors: Float[Array, "E 3"],
) -> None:
    """Puts a square of the second expert's colour into each patch that is `shown`."""
    patch_height, patch_width = _patch_size(image, experts)
    row, col = np.nonzero(shown)
    squares = [
        Rectangle(
            ((c + (1 - _INSET) / 2) * patch_width, (r + (1 - _INSET) / 2) * patch_height),
            _INSET * patch_width,
            _INSET * patch_height,
        )
        for r, c in zip(row, col, strict=True)
    ]
    axes.add_collection(
        PatchCollection(
            squares, facecolors=colors[experts[row, col]], edgecolors="white", linewidths=0.6
        )
    )


def mark_patches(
    axes: Axes, image: Float[np.ndarray, "H W C"], marked: Bool[Array, "rows cols"]
) -> None:
    """Puts a red cross on each patch that is `marked`."""
    patch_height, patch_width = _patch_size(image, marked)
    row, col = np.nonzero(marked)
    # Inches of a patch, of which the cross takes a third.
    figure = axes.figure
    assert isinstance(figure, Figure)  # panels are no parts of a part of a figure
    side = axes.get_position().width * figure.get_size_inches()[0] / marked.shape[1]
    axes.scatter(
        (col + 0.5) * patch_width,
        (row + 0.5) * patch_height,
        s=(72 * min(side / 3, 0.1)) ** 2,
        marker="X",
        color=DIFFERENT_COLOR,
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
    )


def expert_legend(
    figure: Figure,
    colors: Float[Array, "E 3"],
    left: float,
    top: float,
    *,
    title: str,
    shares: Float[Array, " E"] | None = None,
) -> None:
    """Names the experts, and if given the share of each.

    Args:
      figure: The figure.
      colors: (E, 3) sRGB by expert.
      left: Inches from the left.
      top: Inches from the bottom to the top of the legend, see `legend_height`.
      title: Its title.
      shares: (E,) in [0, 1].
    """
    width, height = figure.get_size_inches()
    texts = [str(e) if shares is None else f"{e}: {shares[e]:.1%}" for e in range(len(colors))]
    entries = [Patch(color=color, label=text) for color, text in zip(colors, texts, strict=True)]
    columns = _legend_columns(width)
    figure.legend(
        # A legend fills columns first; this order makes it read by rows.
        handles=[h for c in range(columns) for h in entries[c::columns]],
        loc="upper left",
        bbox_to_anchor=(left / width, top / height),
        ncols=min(columns, len(entries)),
        title=title,
        title_fontsize=SMALL,
        alignment="left",
        handlelength=1,
        **_LEGEND_STYLE,
    )


def mark_legend(
    figure: Figure, entries: Sequence[Artist], right: float, top: float, handle_length: float = 1
) -> None:
    """Explains marks in one row at the right, at the height of the title of `expert_legend`.

    Args:
      figure: The figure.
      entries: Labelled artists.
      right: Inches from the right.
      top: As in `expert_legend`.
      handle_length: Length of a sample of each, in letters.
    """
    width, height = figure.get_size_inches()
    figure.legend(
        handles=entries,
        loc="upper right",
        bbox_to_anchor=(1 - right / width, top / height),
        ncols=max(len(entries), 1),
        handlelength=handle_length,
        **_LEGEND_STYLE,
    )


def legend_height(num_experts: int, width: float) -> float:
    """Returns the height of the legends in inches, in a figure of the given width."""
    return _LEGEND_ROW * (1 + math.ceil(num_experts / _legend_columns(width)))


_LEGEND_STYLE = {"frameon": False, "fontsize": SMALL, "borderpad": 0, "borderaxespad": 0}
NO_MATCH_STYLE = {"facecolor": "0.9", "edgecolor": "0.62", "hatch": "///", "lw": 0}


def save_figure(figure: Figure, path: str | PathLike[str], dpi: int = 160) -> None:
    """Writes a figure as PNG, whole or not at all; folders are created."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=dpi)


def figure_pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Draws a figure; returns its pixels, (H, W, 3) uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _legend_columns(width: float) -> int:
    return max(1, min(8, int((width - 0.5) / _LEGEND_COLUMN)))


def _patch_size(image, grid) -> tuple[int, int]:
    return image.shape[0] // grid.shape[0], image.shape[1] // grid.shape[1]
