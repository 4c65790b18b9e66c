"""Curves of robustness: one line a run."""

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.evaluation.agreement import ALL_BLOCKS
from vmoe_prc.figures.palette import expert_colors

PANELS = {
    "changed": "tokens whose experts change (%)",
    "accuracy": "accuracy (%)",
    "jump": "logit jump per unit of image change",
}
# Apart for readers who see no colours, too.
_MARKERS = "osD^vP"


def robustness_figure(table: pd.DataFrame, units: dict[str, str]) -> Figure:
    """Draws robustness tables, a row of panels for each perturbation.

    Args:
      table: Rows of `robustness_table` of one or several runs, with a column `run`. Where
        several runs have the same name, such as the seeds of one experiment, the line is
        their mean, in a band of their standard deviation.
      units: What the levels count, by perturbation.
    """
    table = table[table["block"] == ALL_BLOCKS]
    kinds, runs = table["perturbation"].unique(), table["run"].unique()
    figure = Figure(figsize=(11, 2.9 * len(kinds)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(PANELS), squeeze=False)
    colors = expert_colors(max(len(runs), 5))[[4, 0, *range(5, len(runs)), 2, 3, 1]]
    for row, kind in zip(axes, kinds, strict=True):
        for axis, (column, label) in zip(row, PANELS.items(), strict=True):
            for i, run in enumerate(runs):
                part = table[(table["perturbation"] == kind) & (table["run"] == run)]
                if column == "jump":  # of an unchanged image there is none
                    part = part[part["distance"] > 0]
                scale = 1 if column == "jump" else 100
                over_seeds = (scale * part.set_index("level")[column]).groupby("level")
                mean, std = over_seeds.mean(), over_seeds.std().fillna(0)
                color = colors[i % len(colors)]
                axis.fill_between(mean.index, mean - std, mean + std, color=color, alpha=0.15, lw=0)
                axis.plot(
                    mean,
                    color=color,
                    marker=_MARKERS[i % len(_MARKERS)],
                    markersize=4,
                    label=run,
                )
            axis.set(xlabel=f"{kind} ({units[kind]})", ylabel=label)
            axis.set_ylim(0, 102 if column == "accuracy" else None)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.label.set_size(8)
            axis.yaxis.label.set_size(8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure
