"""The figure of matched patches: the experts of two views, joined patch by patch."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.evaluation.agreement import pairs_agree
from vmoe_prc.figures.palette import expert_colors
from vmoe_prc.figures.panels import (
    DIFFERENT_COLOR,
    MEDIUM,
    NO_MATCH_STYLE,
    Margins,
    expert_legend,
    headline,
    legend_height,
    mark_legend,
    place_panels,
    plain_text,
    show_image,
    show_routing,
)

# Inches. The lines cross _JOINED_GAP; the agreement of a row is written in the gap above it.
_PANEL, _GAP, _ROW_GAP, _JOINED_GAP = 1.9, 0.1, 0.26, 1.3
_LEFT = (0, _PANEL + _GAP, 2 * _PANEL + 4 * _GAP, 3 * _PANEL + 4 * _GAP + _JOINED_GAP)
_TOP, _BOTTOM, _SIDE = 0.98, 0.16, 0.36
_SAME = {"color": "#1A1A1A", "linestyle": "-", "linewidth": 0.8}
_DIFFERENT = {"color": DIFFERENT_COLOR, "linestyle": (0, (3, 1.6)), "linewidth": 1.1}


def routing_pairs_figure(
    images: Float[Array, "N 2 H W C"],
    experts: Int[Array, "N 2 T"],
    pairs: Int[Array, "N X 2"],
    patch_size: int | tuple[int, int],
    *,
    num_experts: int,
    class_token: bool = True,
    block: str = "",
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draws two views of each image, their patches coloured by expert and joined by pair.

    Each row shows one image: the two views, then both in gray with each patch tinted by its
    expert. Matched patches are joined, by a solid line where their experts are the same and
    by a dashed red line where they differ. Patches without a match are pale and hatched.

    Args:
      images: (N, 2, H, W, C) in [-1, 1], C = 3, or 1 for gray.
      experts: (N, 2, T) first choice of each token; T = P patches in row-major order,
        after the class token if there is one.
      pairs: (N, X, 2) token indices (view 0, view 1), (-1, -1) for no match; a pair of
        class tokens is ignored.
      patch_size: Side of a patch in pixels, or (height, width).
      num_experts: E.
      class_token: Whether token 0 is the class token.
      block: Name of the MoE block, for the title.
      labels: N titles of the rows.

    Returns:
      The figure, bound to no window and not known to pyplot.

    Raises:
      ValueError: If shapes do not match, or an index is out of range.
    """
    images, experts, pairs = np.asarray(images), np.asarray(experts), np.asarray(pairs)
    grid = _PatchGrid.of(images.shape[2:4] if images.ndim == 5 else (0, 0), patch_size)
    _check_images(images, grid, labels)
    _check_tokens(images, experts, pairs, grid.count + class_token, num_experts)
    offset = int(class_token)
    experts = experts[:, :, offset:]  # (N, 2, P)
    matched = np.all(pairs >= offset, axis=-1)  # (N, X)
    rows = [pairs[n][matched[n]] - offset for n in range(len(pairs))]  # (matches, 2) each
    same = [np.asarray(pairs_agree(experts[n], r)) for n, r in enumerate(rows)]

    colors = expert_colors(num_experts)
    legend = legend_height(num_experts, _LEFT[-1] + _PANEL + 2 * _SIDE)
    height, width = grid.image_size
    figure, axes = place_panels(
        _LEFT,
        [n * (_PANEL * height / width + _ROW_GAP) for n in range(len(images))],
        (_PANEL, _PANEL * height / width),
        Margins(_TOP, _BOTTOM + legend + _ROW_GAP, _SIDE, _SIDE),
    )
    for n, panels in enumerate(axes):
        for view in range(2):
            show_image(panels[view], images[n, view])
            vivid = np.isin(np.arange(experts.shape[-1]), rows[n][:, view]).reshape(grid.shape)
            chosen = experts[n, view].reshape(grid.shape)
            show_routing(panels[2 + view], images[n, view], chosen, vivid, colors)
        _join(figure, panels[2:], rows[n], same[n], grid)
        _note(figure, panels[2:], same[n])
        if labels is not None:
            panels[0].set_ylabel(
                plain_text(labels[n], _PANEL * height / width), fontsize=MEDIUM, color="0.25"
            )
    for axis, title in zip(axes[0], ("view 0", "view 1") * 2, strict=True):
        axis.set_title(title, fontsize=MEDIUM, color="0.35", pad=4)
    title = "Which expert sees which patch" + (f" \N{EN DASH} {block}" if block else "")
    headline(figure, _SIDE, title, _agreement_text(np.concatenate(same)))
    load = np.bincount(experts.ravel(), minlength=num_experts) / experts.size
    _legend(figure, colors, load)
    return figure


@dataclasses.dataclass(frozen=True)
class _PatchGrid:
    """The patches of an image of `image_size` (height, width), each of `patch_size`."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]

    @classmethod
    def of(cls, image_size: Sequence[int], patch_size: int | tuple[int, int]) -> "_PatchGrid":
        height, width = image_size
        rows, columns = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
        return cls((height, width), (rows, columns))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width

    @property
    def count(self) -> int:
        """Number of patches."""
        return self.shape[0] * self.shape[1]


def _check_images(images: np.ndarray, grid: _PatchGrid, labels: Sequence[str] | None) -> None:
    if images.ndim != 5 or images.shape[1] != 2 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be (N, 2, H, W, 3 or 1), but are {images.shape}")
    if any(size % patch for size, patch in zip(grid.image_size, grid.patch_size, strict=True)):
        raise ValueError(f"patch_size {grid.patch_size} does not divide images {images.shape}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")


def _check_tokens(
    images: np.ndarray, experts: np.ndarray, pairs: np.ndarray, tokens: int, num_experts: int
) -> None:
    """Checks (N, 2, tokens) experts and (N, X, 2) pairs of N images."""
    expected = (len(images), 2, tokens)
    if experts.shape != expected:
        raise ValueError(
            f"experts must be {expected} for images {images.shape} with this patch_size and "
            f"class_token, but are {experts.shape}"
        )
    if pairs.ndim != 3 or pairs.shape[0] != len(images) or pairs.shape[2] != 2:
        raise ValueError(
            f"pairs must be ({len(images)}, X, 2) for images {images.shape}, but are {pairs.shape}"
        )
    for name, array, low, high in (
        ("experts", experts, 0, num_experts),
        ("pairs", pairs, -1, tokens),
    ):
        if array.size and (array.min() < low or array.max() >= high):
            raise ValueError(
                f"{name} must be in [{low}, {high}), but are in [{array.min()}, {array.max()}]"
            )


def _join(
    figure: Figure,
    panels: Sequence[Axes],
    pairs: Int[np.ndarray, "M 2"],
    same: Bool[np.ndarray, " M"],
    grid: _PatchGrid,
) -> None:
    """Joins M pairs of patches of two panels; pairs that differ are drawn on top."""
    axes0, axes1 = panels
    patch_height, patch_width = grid.patch_size
    columns = grid.shape[1]
    row, col = np.divmod(pairs, columns)
    x = (col + 0.5) * patch_width
    # A line starts a little above or below the centre of its patch, depending on its column in
    # view 0 and against its slope: otherwise the lines of a row of patches would coincide.
    fall = np.bincount(row[:, 0], weights=row[:, 1] - row[:, 0])  # of each row of patches
    shift = np.where(fall[row[:, :1]] > 0, -0.56, 0.56) * ((col[:, :1] + 0.5) / columns - 0.5)
    y = (row + 0.5 + shift) * patch_height
    thinner = min(1.0, max(0.45, (50 / max(len(pairs), 1)) ** 0.5))
    for style, marker, chosen in ((_SAME, "o", same), (_DIFFERENT, "X", ~same)):
        style = style | {"linewidth": thinner * style["linewidth"]}
        for start, end in zip(
            np.stack([x, y], -1)[chosen, 0], np.stack([x, y], -1)[chosen, 1], strict=True
        ):
            line = ConnectionPatch(start, end, "data", axesA=axes0, axesB=axes1, **style)
            figure.add_artist(line)
        for view, axes in enumerate((axes0, axes1)):
            axes.scatter(
                x[chosen, view],
                y[chosen, view],
                s=thinner**2 * (11 if marker == "o" else 20),
                marker=marker,
                color=style["color"],
                edgecolors="white",
                linewidths=0.5 * thinner,
                zorder=3,
            )


def _note(figure: Figure, panels: Sequence[Axes], same: Bool[np.ndarray, " M"]) -> None:
    """Writes the agreement of a row between its joined panels, above the lines."""
    left, right = (axes.get_position() for axes in panels)
    figure.text(
        (left.x1 + right.x0) / 2,
        left.y1 + 0.04 / figure.get_size_inches()[1],
        f"{same.sum()} of {same.size} agree" if same.size else "no match",
        ha="center",
        fontsize=MEDIUM,
        color="0.35",
    )


def _agreement_text(same: Bool[np.ndarray, " M"]) -> str:
    if not same.size:
        return "no matched patch pairs"
    return f"{same.size:,} matched patch pairs; {100 * same.mean():.1f}% have the same expert"


def _legend(
    figure: Figure, colors: Float[np.ndarray, "E 3"], load: Float[np.ndarray, " E"]
) -> None:
    """Names the experts with their shares of the patches, and the kinds of lines."""
    top = _BOTTOM + legend_height(len(colors), figure.get_size_inches()[0])
    title = "share of patches per expert"
    expert_legend(figure, colors, _SIDE, top, title=title, shares=load)
    marks = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    lines = [
        Line2D([], [], marker="o", label="same expert", **_SAME, **marks),
        Line2D([], [], marker="X", label="different experts", **_DIFFERENT, **marks),
        Patch(**NO_MATCH_STYLE, label="no match"),
    ]
    mark_legend(figure, lines, _SIDE, top, handle_length=3)
