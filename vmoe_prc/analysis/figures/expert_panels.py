"""The figure of what the experts of a block do."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from vmoe_prc.analysis.specialisation import Specialisation
from vmoe_prc.figures.palette import expert_colors
from vmoe_prc.figures.panels import LARGE, MEDIUM, SMALL, plain_text, supertitle

# Seen by colour-blind readers as by others, and in gray.
_COLORS = "cividis"
_MEASURES = {
    "weights": "cosine of the weights",
    "outputs": "CKA of the outputs",
    "selection": "share of the tokens of the row\nthat the column processes, too",
}
# With more cells than that, numbers in them are too small.
_MOST_NUMBERS = 12
_MOST_TICKS = 25
# Names of classes with more letters in all are written upright.
_MOST_LETTERS = 50


def specialisation_figure(
    found: Specialisation,
    block: str,
    *,
    title: str = "",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws load, classes, entropy and similarity of the experts of a block.

    Args:
      found: Tables of `specialisation`, with further measures of `similarity_table`.
      block: The block.
      title: Text after the name of the block.
      class_names: Names of the classes, None if they are unknown.
    """
    tables = found.of_block(block)
    summary = tables.blocks.iloc[0]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(12, 7.4), facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    whole = f"What the experts do \N{EN DASH} {block}" + (f", {title}" if title else "")
    text = (
        f"{summary['dropped']:.1%} of the choices dropped; the expert of a token tells "
        f"{summary['class_information']:.2f} nats of its class"
    )
    supertitle(figure, whole, LARGE, weight="bold", x=0.012, ha="left")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.08), squeeze=False).ravel()
    load, classes, entropy = above.subplots(1, 3, width_ratios=(1, 1.6, 1))
    _draw_load(load, tables.experts)
    _draw_classes(classes, tables.classes, class_names)
    _draw_entropy(entropy, tables.entropy, summary)
    above.suptitle(text, fontsize=10.5, color="0.25", x=0.012, ha="left")
    measures = [name for name in _MEASURES if (tables.similarity["measure"] == name).any()]
    for axes, measure in zip(np.atleast_1d(below.subplots(1, 3)), _MEASURES, strict=True):
        if measure in measures:
            _draw_similarity(axes, tables.similarity, measure)
        else:
            axes.set_axis_off()
    return figure


def _draw_load(axes: Axes, experts: pd.DataFrame) -> None:
    position = np.arange(len(experts))
    colors = expert_colors(len(experts))
    axes.bar(position - 0.2, 100 * experts["load"], 0.4, color=colors)
    axes.bar(
        position + 0.2,
        100 * experts["first"],
        0.4,
        color="white",
        edgecolor=colors,
        hatch="////",
        linewidth=1.2,
    )
    axes.axhline(100 / len(experts), color="0.3", linestyle=(0, (4, 2)), linewidth=0.9)
    axes.set_title("load (%): full, of all choices;\nhatched, of first choices", fontsize=MEDIUM)
    axes.set_xlabel("expert (dashed: equal load)", fontsize=SMALL)
    _name_ticks(axes.xaxis, len(experts))
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_classes(axes: Axes, classes: pd.DataFrame, class_names: Sequence[str] | None) -> None:
    shares = classes.pivot(index="expert", columns="label", values="share")
    shares = shares.dropna(axis=1)  # classes without an image
    if shares.empty:
        axes.text(0.5, 0.5, "no labels", ha="center", va="center", fontsize=MEDIUM)
        axes.set_axis_off()
        return
    favourite = shares.to_numpy().argmax(axis=0)
    order = np.lexsort((-shares.to_numpy().max(axis=0), favourite))
    shares = shares.iloc[:, order]
    image = axes.imshow(shares, cmap=_COLORS, aspect="auto", vmin=0, interpolation="nearest")
    axes.set_title("share of the tokens of a class\nwhose first choice it is", fontsize=MEDIUM)
    axes.set_ylabel("expert", fontsize=SMALL)
    few = shares.shape[1] <= _MOST_TICKS
    label = "class, by its first expert" + ("" if few else " (too many to name)")
    axes.set_xlabel(label, fontsize=SMALL)
    if few:
        _name_classes(axes, [int(name) for name in shares.columns], class_names)
    else:
        axes.set_xticks([])
    _name_ticks(axes.yaxis, len(shares))
    axes.tick_params(labelsize=SMALL)
    _write_numbers(axes, shares.to_numpy(), percent=True)
    _color_bar(axes, image, percent=True)


def _name_classes(axes: Axes, classes: Sequence[int], names: Sequence[str] | None) -> None:
    titles = [names[label] if names else str(label) for label in classes]
    upright = max(map(len, titles)) * len(titles) > _MOST_LETTERS
    axes.set_xticks(
        range(len(titles)),
        [plain_text(title, 1.6, SMALL) for title in titles],
        rotation=90 if upright else 0,
    )


def _draw_entropy(axes: Axes, entropy: pd.DataFrame, summary: pd.Series) -> None:
    widths = entropy["high"] - entropy["low"]
    axes.bar(entropy["low"], 100 * entropy["share"], widths, align="edge", color="#0072B2")
    axes.axvline(summary["entropy"], color="#D55E00", linewidth=1.4)
    axes.annotate(
        f"mean {summary['entropy']:.2f}",
        (summary["entropy"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if summary["entropy"] > summary["max_entropy"] / 2 else 4, -2),
        textcoords="offset points",
        ha="right" if summary["entropy"] > summary["max_entropy"] / 2 else "left",
        va="top",
        fontsize=SMALL,
        color="#D55E00",
    )
    axes.set_xlim(0, summary["max_entropy"])
    axes.set_title("entropy of the gates of a token\n(% of tokens)", fontsize=MEDIUM)
    axes.set_xlabel("nats; at the right end all gates are equal", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_similarity(axes: Axes, similarity: pd.DataFrame, measure: str) -> None:
    part = similarity[similarity["measure"] == measure]
    values = part.pivot(index="expert", columns="other", values="value").to_numpy()
    lowest = min(0.0, float(np.nanmin(values)))
    image = axes.imshow(values, cmap=_COLORS, vmin=lowest, vmax=1, interpolation="nearest")
    axes.set_title(_MEASURES[measure], fontsize=MEDIUM)
    axes.set_xlabel("expert", fontsize=SMALL)
    axes.set_ylabel("expert", fontsize=SMALL)
    for axis in (axes.xaxis, axes.yaxis):
        _name_ticks(axis, len(values))
    axes.tick_params(labelsize=SMALL)
    _write_numbers(axes, values, percent=measure == "selection")
    _color_bar(axes, image, percent=measure == "selection")


def _name_ticks(axis, count: int) -> None:
    step = 1 if count <= 16 else 4
    axis.set_ticks(range(0, count, step), labels=range(0, count, step))


def _write_numbers(axes: Axes, values: np.ndarray, *, percent: bool) -> None:
    if max(values.shape) > _MOST_NUMBERS:
        return
    low, high = axes.images[0].get_clim()
    for (row, col), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{100 * value:.0f}" if percent else f"{value:.2f}"
        bright = value > low + 0.55 * (high - low)
        axes.text(
            col, row, text, ha="center", va="center", fontsize=8, color="0.1" if bright else "0.95"
        )


def _color_bar(axes: Axes, image, *, percent: bool) -> None:
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.outline.set_linewidth(0.5)
    if percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
