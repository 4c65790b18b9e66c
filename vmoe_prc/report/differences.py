"""Differences of experiments with their intervals, as a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.report.paired import Difference, DifferenceTable


def differences_figure(table: DifferenceTable) -> Figure:
    """Draws a panel for each figure that is compared, and a line for each comparison.

    Args:
      table: The comparisons; a line without an interval is that of a single pair.
    """
    width, height = 3.4 + 2.1 * len(table.columns), 0.9 + 0.32 * len(table.rows)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, table.columns, strict=True):
        axis.axvline(0, color="0.6", lw=1)
        for y, row in enumerate(table.rows):
            if column in row.differences:
                _draw(axis, y, row.differences[column])
        axis.set_xlabel(f"{column} (points)", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes[0].set_ylim(len(table.rows) - 0.5, -0.5)  # from the top down, as in the table
    return figure


def _draw(axis, y: int, value: Difference) -> None:
    color = "tab:blue"
    if value.low is not None and value.high is not None:
        axis.plot([value.low, value.high], [y, y], color=color, lw=1.5)
    axis.plot(value.mean, y, "o", color=color, markersize=4)
