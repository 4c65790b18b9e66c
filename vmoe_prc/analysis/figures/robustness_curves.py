"""Curves of robustness: one line per run or experiment."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.evaluation.agreement import ALL_BLOCKS
from vmoe_prc.figures.palette import LineStyle, line_styles
from vmoe_prc.figures.panels import NAME_LETTERS, plain_text, shorten

PANELS = {
    "changed": "tokens whose experts change (%)",
    "accuracy": "accuracy (%)",
    "jump": "logit jump per unit of image change",
}


def robustness_figure(
    table: pd.DataFrame, units: Mapping[str, str], styles: Mapping[str, LineStyle] | None = None
) -> Figure:
    """Draws robustness tables, a row of panels for each perturbation.

    Args:
      table: Rows of `robustness_table` of one or several runs, with a column `run`. Rows of
        runs with the same name, such as the seeds of one experiment, are drawn as their mean
        with a band of one standard deviation. A dotted line shows the effect of choices that
        are dropped with the run's own capacity.
      units: Unit of the levels, by perturbation.
      styles: Style of the line of each run; by default `line_styles` in the order of `table`.
    """
    table = table[table["block"] == ALL_BLOCKS]
    kinds, runs = table["perturbation"].unique(), table["run"].unique()
    styles = styles or dict(zip(runs, line_styles(len(runs)), strict=True))
    figure = Figure(figsize=(11, 2.9 * len(kinds)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(kinds), len(PANELS), squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for axes, (column, label) in zip(row, PANELS.items(), strict=True):
            for run in runs:
                part = table[(table["perturbation"] == kind) & (table["run"] == run)]
                if column == "jump":  # undefined for an unchanged image
                    part = part[part["distance"] > 0]
                scale = 1 if column == "jump" else 100
                levels = part.set_index("level")
                _draw_line(axes, scale * levels[column], styles[run], run)
                with_drops = f"{column}_with_drops"
                if with_drops in part and (part["dropped"] > 0).any():
                    means = (scale * levels[with_drops]).groupby("level").mean()
                    name = plain_text(f"{shorten(run, NAME_LETTERS)}, with dropped tokens")
                    axes.plot(means, color=styles[run].color, lw=0.9, ls=(0, (1, 1.5)), label=name)
            axes.set(xlabel=f"{kind} ({units[kind]})", ylabel=label)
            axes.set_ylim(0, 102 if column == "accuracy" else None)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.label.set_size(8)
            axes.yaxis.label.set_size(8)
    panels[0, 1].legend(frameon=False, fontsize=8)
    return figure


def _draw_line(axes: Axes, values: pd.Series, style: LineStyle, label: str) -> None:
    """Draws the mean over the rows of each level, with a band of one standard deviation."""
    by_level = values.groupby("level")
    mean, std = by_level.mean(), by_level.std().fillna(0)
    axes.fill_between(mean.index, mean - std, mean + std, color=style.color, alpha=0.15, lw=0)
    axes.plot(
        mean,
        color=style.color,
        linestyle=style.dashes,
        marker=style.marker,
        markersize=4,
        label=plain_text(shorten(label, NAME_LETTERS)),
    )
