"""The picture that a run ends with: which expert each patch of two views goes to."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch

from vmoe_prc.arrays import Array, Float, Int
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
    show_image,
    show_routing,
)

# Inches. The lines cross _JOINED_GAP; the agreement of a row stands in the gap above it.
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

    A row an image: the two views; then both in gray, each patch tinted by its expert.
    Matched patches are joined, by a solid line where their experts are the same and by a
    dashed red one where they differ. Patches without a match are pale and hatched.

    Args:
      images: (N, 2, H, W, C) in [-1, 1], C = 3, or 1 for gray.
      experts: (N, 2, T) first choice of each token; T = P patches in row-major order,
        after the class token if there is one.
      pairs: (N, X, 2) token indices (view 0, view 1), (-1, -1) for no match; a pair of
        class tokens is left out.
      patch_size: Side of a patch in pixels, or (height, width).
      num_experts: E.
      class_token: Whether token 0 is the class token.
      block: Name of the MoE block, for the title.
      labels: N texts, one for each row.

    Returns:
      The figure, bound to no window and not known to pyplot.

    Raises:
      ValueError: If shapes do not fit each other, or an index is out of range.
    """
    images, experts, pairs = (np.asarray(array) for array in (images, experts, pairs))
    if isinstance(patch_size, int):
        patch_size = (patch_size, patch_size)
    _check(images, experts, pairs, patch_size, num_experts, class_token, labels)
    offset = int(class_token)
    experts = experts[:, :, offset:]  # (N, 2, P)
    matched = (pairs >= offset).all(axis=-1)  # (N, X)
    rows = [pairs[n][matched[n]] - offset for n in range(len(pairs))]  # (matches, 2) each
    same = [experts[n, 0, r[:, 0]] == experts[n, 1, r[:, 1]] for n, r in enumerate(rows)]

    colors = expert_colors(num_experts)
    legend = legend_height(num_experts, _LEFT[-1] + _PANEL + 2 * _SIDE)
    height, width = images.shape[2:4]
    figure, axes = place_panels(
        _LEFT,
        [n * (_PANEL * height / width + _ROW_GAP) for n in range(len(images))],
        (_PANEL, _PANEL * height / width),
        Margins(_TOP, _BOTTOM + legend + _ROW_GAP, _SIDE, _SIDE),
    )
    grid = (height // patch_size[0], width // patch_size[1])
    for n, panels in enumerate(axes):
        for view in range(2):
            show_image(panels[view], images[n, view])
            vivid = np.isin(np.arange(experts.shape[-1]), rows[n][:, view]).reshape(grid)
            chosen = experts[n, view].reshape(grid)
            show_routing(panels[2 + view], images[n, view], chosen, vivid, colors)
        _join(figure, panels[2], panels[3], rows[n], same[n], width, patch_size)
        _note(figure, panels[2], panels[3], same[n])
        if labels is not None:
            panels[0].set_ylabel(labels[n], fontsize=MEDIUM, color="0.25")
    for axis, title in zip(axes[0], ("view 0", "view 1") * 2, strict=True):
        axis.set_title(title, fontsize=MEDIUM, color="0.35", pad=4)
    title = "Which expert sees which patch" + (f" \N{EN DASH} {block}" if block else "")
    headline(figure, _SIDE, title, _agreement_text(np.concatenate(same)))
    load = np.bincount(experts.ravel(), minlength=num_experts) / experts.size
    _legend(figure, colors, load)
    return figure


def _check(images, experts, pairs, patch_size, num_experts, class_token, labels) -> None:
    if images.ndim != 5 or images.shape[1] != 2 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be (N, 2, H, W, 3 or 1), but are {images.shape}")
    num_images, _, height, width, _ = images.shape
    if height % patch_size[0] or width % patch_size[1]:
        raise ValueError(f"patch_size {patch_size} does not divide images {images.shape}")
    patches = (height // patch_size[0]) * (width // patch_size[1])
    expected = (num_images, 2, patches + class_token)
    if experts.shape != expected:
        raise ValueError(
            f"experts must be {expected} for images {images.shape} with patch_size "
            f"{patch_size} and class_token = {class_token}, but are {experts.shape}"
        )
    if pairs.ndim != 3 or pairs.shape[0] != num_images or pairs.shape[2] != 2:
        raise ValueError(
            f"pairs must be ({num_images}, X, 2) for images {images.shape}, but are {pairs.shape}"
        )
    if labels is not None and len(labels) != num_images:
        raise ValueError(f"{len(labels)} labels for {num_images} images")
    for name, array, low, high in (
        ("experts", experts, 0, num_experts),
        ("pairs", pairs, -1, expected[2]),
    ):
        if array.size and (array.min() < low or array.max() >= high):
            raise ValueError(
                f"{name} must be in [{low}, {high}), but are in [{array.min()}, {array.max()}]"
            )


def _join(figure, axes0, axes1, pairs, same, width, patch_size) -> None:
    """Joins (matches, 2) patches of the views; those that differ lie on top."""
    patch_height, patch_width = patch_size
    columns = width // patch_width
    row, col = np.divmod(pairs, columns)
    x = (col + 0.5) * patch_width
    # A line leaves its patch a little above or below the centre, by its column in view 0,
    # against its slope: the lines of a row of patches would else lie on top of each other.
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


def _note(figure, axes0, axes1, same) -> None:
    """Writes the agreement of a row between its joined panels, above the lines."""
    left, right = axes0.get_position(), axes1.get_position()
    figure.text(
        (left.x1 + right.x0) / 2,
        left.y1 + 0.04 / figure.get_size_inches()[1],
        f"{same.sum()} of {same.size} agree" if same.size else "no match",
        ha="center",
        fontsize=MEDIUM,
        color="0.35",
    )


def _agreement_text(same) -> str:
    if not same.size:
        return "no matched patch pairs"
    share = f"{100 * same.mean():.1f}% of them go to the same expert"
    return f"{same.size:,} matched patch pairs, {share} in both views"


def _legend(figure, colors, load) -> None:
    """Names the experts with the share of patches each gets, and the kinds of lines."""
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
