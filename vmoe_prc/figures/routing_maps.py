"""Routing maps: the experts of the patches of images, by block, perturbation and run.

The tint of a patch is its first expert; a square in it is its second.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.evaluation.agreement import pairs_agree
from vmoe_prc.figures.palette import expert_colors
from vmoe_prc.figures.panels import (
    DIFFERENT_COLOR,
    MEDIUM,
    NAME_LETTERS,
    NO_MATCH_STYLE,
    SMALL,
    Margins,
    expert_legend,
    headline,
    legend_height,
    mark_legend,
    mark_patches,
    place_panels,
    plain_text,
    shorten,
    show_image,
    show_routing,
    show_second_choices,
)

# Inches; _GROUP_GAP is the gap between groups of panels.
_PANEL, _GAP, _GROUP_GAP = 1.45, 0.1, 0.3
_TOP, _BOTTOM, _SIDE, _LABEL = 1.0, 0.16, 0.3, 0.34
_ABOVE_LEGEND = 0.26


@dataclasses.dataclass(frozen=True)
class PatchRouting:
    """The choices of a router for the patches of images, without the class token.

    Attributes:
      experts: (..., rows, cols, K) experts of the patches of a grid, best first.
      kept: (..., rows, cols, K), False where the expert was full.
      num_experts: E.
    """

    experts: Int[np.ndarray, "... K"]
    kept: Bool[np.ndarray, "... K"]
    num_experts: int

    @classmethod
    def of_tokens(
        cls,
        experts: Int[np.ndarray, "N T K"],
        kept: Bool[np.ndarray, "N T K"],
        grid: tuple[int, int],
        *,
        num_experts: int,
    ) -> "PatchRouting":
        """Takes the choices of T tokens; drops a class token before the (rows, cols) patches."""

        def patches(values):
            values = values[:, values.shape[1] - grid[0] * grid[1] :]
            return values.reshape(len(values), *grid, -1)

        return cls(patches(experts), patches(kept), num_experts)

    def __getitem__(self, index) -> "PatchRouting":
        """Indexes the leading axes."""
        return dataclasses.replace(self, experts=self.experts[index], kept=self.kept[index])

    @property
    def first(self) -> Int[np.ndarray, "..."]:
        """(..., rows, cols) first choices."""
        return self.experts[..., 0]


def routing_map_figure(
    images: Float[Array, "N H W C"],
    routings: Mapping[str, PatchRouting],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draws a row of images, and below it their maps in each block.

    Args:
      images: (N, H, W, C) in [-1, 1], C = 3, or 1 for gray.
      routings: Choices for the N images, by the name of the block.
      labels: N titles of the images.
      title: Text after "Which expert sees which patch".

    Returns:
      The figure, bound to no window and not known to pyplot.
    """
    images = np.asarray(images)
    most = max(routing.num_experts for routing in routings.values())
    figure, axes = _grid([len(images)], [1 + len(routings)], images.shape[1:3], most)
    for n, image in enumerate(images):
        show_image(axes[0][n], image)
        if labels is not None:
            axes[0][n].set_title(
                plain_text(labels[n], _PANEL), fontsize=MEDIUM, color="0.25", pad=4
            )
        for row, routing in zip(axes[1:], routings.values(), strict=True):
            _show_map(row[n], image, routing[n], second=True)
    for row, name in zip(axes, ("image", *routings), strict=True):
        _name_row(row[0], name)
    text = "the tint of a patch is its first choice"
    _describe(figure, routings, _Caption(title, text, second=True))
    return figure


def sequence_figure(
    images: Float[Array, "N L H W C"],
    routings: Mapping[str, PatchRouting],
    levels: Sequence[str],
    *,
    unit: str,
    title: str = "",
) -> Figure:
    """Draws images under a growing perturbation, and below them the maps of one or more runs.

    A cross marks a patch whose first expert differs from the first step.

    Args:
      images: (N, L, H, W, C) in [-1, 1]; the first of the L steps is the original image.
      routings: Choices for the (N, L) images, by the name of the run.
      levels: L titles of the steps.
      unit: Unit of the levels.
      title: Text after "Which expert sees which patch".

    Returns:
      The figure, bound to no window and not known to pyplot.
    """
    images = np.asarray(images)
    most = max(routing.num_experts for routing in routings.values())
    rows_per_image = 1 + len(routings)
    rows = [rows_per_image] * len(images)
    figure, axes = _grid([images.shape[1]], rows, images.shape[2:4], most)
    for n, steps in enumerate(images):
        rows = axes[n * rows_per_image : (n + 1) * rows_per_image]
        for row, name in zip(rows, ("image", *routings), strict=True):
            _name_row(row[0], name)
        for step, image in enumerate(steps):
            show_image(rows[0][step], image)
            for row, routing in zip(rows[1:], routings.values(), strict=True):
                _show_map(row[step], image, routing[n, step])
                mark_patches(row[step], image, routing[n, step].first != routing[n, 0].first)
    for axis, level in zip(axes[0], levels, strict=True):
        axis.set_title(level, fontsize=MEDIUM, color="0.25", pad=4)
    marks = {f"another first expert than at {levels[0]}": DIFFERENT_COLOR}
    text = _changes_text(routings, levels[-1], unit)
    _describe(figure, routings, _Caption(title, text, marks))
    return figure


def comparison_figure(
    images: Float[Array, "N 2 H W C"],
    routings: Mapping[str, PatchRouting],
    pairs: Int[Array, "N X 2"],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draws two views of each image next to the maps of one or more runs.

    A cross marks a patch whose match in the other view goes to another expert; patches
    without a match are pale and hatched.

    Args:
      images: (N, 2, H, W, C) in [-1, 1].
      routings: Choices for the (N, 2) views, by the name of the run.
      pairs: (N, X, 2) matched patches (view 0, view 1) in row-major order, without the class
        token; negative where there is no match.
      labels: N titles of the rows.
      title: Text after "Which expert sees which patch".

    Returns:
      The figure, bound to no window and not known to pyplot.
    """
    images, pairs = np.asarray(images), np.asarray(pairs)
    most = max(routing.num_experts for routing in routings.values())
    columns = [2] * (1 + len(routings))
    figure, axes = _grid(columns, [len(images)], images.shape[2:4], most)
    agreement = {}
    for run, (name, routing) in enumerate(routings.items()):
        same = []
        for n, views in enumerate(images):
            row = axes[n][2 + 2 * run : 4 + 2 * run]
            same.append(_show_views(row, views, routing[n], pairs[n]))
        agreement[name] = np.concatenate(same)
    for n, views in enumerate(images):
        for axis, view in zip(axes[n], views, strict=False):
            show_image(axis, view)
        if labels is not None:
            _name_row(axes[n][0], labels[n])
    for i, name in enumerate(("image", *routings)):
        for view, text in enumerate((f"{name}\nview 0", "view 1")):
            # Left-aligned: a long name may reach over both views.
            axis = axes[0][2 * i + view]
            text = plain_text(text, 2 * _PANEL + _GAP, SMALL)
            axis.set_title(text, loc="left", fontsize=SMALL, color="0.25", pad=4)
    shares = [
        f"{shorten(name, NAME_LETTERS)}: {f'{same.mean():.1%}' if same.size else 'no match'}"
        for name, same in agreement.items()
    ]
    text = "matched patches here with the same first expert \N{EN DASH} " + ", ".join(shares)
    marks = {"its match goes to another expert": DIFFERENT_COLOR}
    _describe(figure, routings, _Caption(title, text, marks, unmatched=True))
    return figure


def _show_views(axes, views, routing: PatchRouting, pairs) -> np.ndarray:
    """Shows the maps of two views; returns for each pair whether the first experts agree."""
    pairs = pairs[(pairs >= 0).all(axis=-1)]
    first = routing.first.reshape(2, -1)  # (2, P)
    same = np.asarray(pairs_agree(first, pairs))
    for view in range(2):
        patches = np.arange(first.shape[1]).reshape(routing.first.shape[1:])
        matched = np.isin(patches, pairs[:, view])
        _show_map(axes[view], views[view], routing[view], matched)
        mark_patches(axes[view], views[view], np.isin(patches, pairs[~same, view]))
    return same


def _show_map(axes: Axes, image, routing: PatchRouting, vivid=None, *, second=False) -> None:
    colors = expert_colors(routing.num_experts)
    vivid = np.ones(routing.first.shape, bool) if vivid is None else vivid
    show_routing(axes, image, routing.first, vivid & routing.kept[..., 0], colors)
    if second and routing.experts.shape[-1] > 1:
        shown = vivid & routing.kept[..., 1]
        show_second_choices(axes, image, routing.experts[..., 1], shown, colors)


def _grid(columns, rows, image_size, num_experts):
    """Places panels; `columns` and `rows` hold the number of panels of each group."""
    height = _PANEL * image_size[0] / image_size[1]
    left = _distances(columns, _PANEL)
    width = _SIDE + _LABEL + left[-1] + _PANEL + _SIDE
    below = _BOTTOM + legend_height(num_experts, width) + _ABOVE_LEGEND
    margins = Margins(_TOP, below, _SIDE + _LABEL, _SIDE)
    return place_panels(left, _distances(rows, height), (_PANEL, height), margins)


def _distances(groups, size: float) -> list[float]:
    distances, distance = [], 0.0
    for count in groups:
        distances += [distance + i * (size + _GAP) for i in range(count)]
        distance = distances[-1] + size + _GROUP_GAP
    return distances


def _name_row(axes: Axes, name: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = axes.get_position().height * figure.get_size_inches()[1]
    axes.set_ylabel(plain_text(name, height, SMALL), fontsize=SMALL, color="0.25")


def _changes_text(routings: Mapping[str, PatchRouting], last: str, unit: str) -> str:
    changes = {
        name: np.mean(routing.first[:, -1] != routing.first[:, 0])
        for name, routing in routings.items()
    }
    shares = ", ".join(
        f"{shorten(name, NAME_LETTERS)}: {share:.1%}" for name, share in changes.items()
    )
    return f"columns: {unit}; another first expert at {last} \N{EN DASH} {shares}"


@dataclasses.dataclass(frozen=True)
class _Caption:
    """Texts and marks around the panels of a figure.

    Attributes:
      title: Follows "Which expert sees which patch".
      text: The line below the title.
      marks: Colour of each kind of cross, by its label.
      second: Whether second choices are drawn.
      unmatched: Whether patches without a match are drawn pale.
    """

    title: str
    text: str
    marks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    second: bool = False
    unmatched: bool = False


def _describe(figure: Figure, routings: Mapping[str, PatchRouting], caption: _Caption) -> None:
    """Adds the title and the legends."""
    subject = f" \N{EN DASH} {caption.title}" if caption.title else ""
    headline(figure, _SIDE, f"Which expert sees which patch{subject}", caption.text)
    most = max(routing.num_experts for routing in routings.values())
    top = _BOTTOM + legend_height(most, figure.get_size_inches()[0])
    single = len(routings) == 1 or caption.second
    title = "expert" if single else "expert (numbered separately in each run)"
    expert_legend(figure, expert_colors(most), _SIDE, top, title=title)
    entries: list[Artist] = [
        Line2D([], [], marker="X", ls="", ms=6, c=color, mec="white", mew=0.5, label=name)
        for name, color in caption.marks.items()
    ]
    dropped = not all(routing.kept[..., 0].all() for routing in routings.values())
    pale = ["no match"] * caption.unmatched + ["expert full"] * dropped
    if pale:
        entries.append(Patch(**NO_MATCH_STYLE, label=" or ".join(pale)))
    if caption.second and any(routing.experts.shape[-1] > 1 for routing in routings.values()):
        square = Line2D([], [], marker="s", ls="", ms=7, c="0.55", mec="white")
        square.set_label("second choice")
        entries.append(square)
    mark_legend(figure, entries, _SIDE, top)
