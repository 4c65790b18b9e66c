"""Figures of reports: learning curves of experiments, and differences of two experiments."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.config.metric_names import MetricName
from vmoe_prc.evaluation.agreement import PARTS
from vmoe_prc.figures.agreement_bars import AgreementBar, mean_bar
from vmoe_prc.figures.palette import line_styles
from vmoe_prc.figures.panels import plain_text
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.paired import Difference, DifferenceTable

# Metrics to draw: title, and factor from the unit of the metric to the unit of the title.
CURVES = {
    "train/main_loss": ("classification loss, training", 1.0),
    "train/auxiliary_loss": ("loss on the routers, training", 1.0),
    "val/accuracy": ("top-1 accuracy, val (%)", 100.0),
    "test/accuracy": ("top-1 accuracy, test (%)", 100.0),
    "test_pairs/top1": ("top-1 agreement of two views, test (%)", 100.0),
}
# A curve of more points is averaged over this many stretches of steps.
MAX_POINTS = 150
_SIZE = (4.4, 2.6)


def available_curves(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the names in `CURVES` for which some run has finite values."""
    runs = [run for experiment in experiments for run in experiment.runs]
    return [name for name in CURVES if any(len(_points(run.records, name)) for run in runs)]


def learning_curve(experiments: Sequence[Experiment], name: str) -> Figure:
    """Draws a metric that was logged in training, by step: one line per run.

    Args:
      experiments: Experiments on one data set; experiment i has style i of `line_styles`.
      name: One of `CURVES`.

    Returns:
      A figure in the current style of Matplotlib.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    title, factor = CURVES[name]
    for experiment, style in zip(experiments, line_styles(len(experiments)), strict=True):
        for run in experiment.runs:
            points = _points(run.records, name)
            axes.plot(
                *(points * (1, factor)).T,
                color=style.color,
                linestyle=style.dashes,
                linewidth=1.4,
                alpha=0.85,
                marker="o" if len(points) < 12 else "",  # shows when rare evaluations were made
                markersize=4,
            )
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure


def agreement_bars(
    experiments: Sequence[Experiment], split: str = "test_pairs"
) -> list[AgreementBar]:
    """Returns the agreement of first choices in parts, averaged over the runs of an experiment.

    Args:
      experiments: Experiments on one data set.
      split: A split with two views.

    Returns:
      One bar per experiment whose runs logged the parts; runs that diverged do not count.
    """
    bars = []
    for experiment in experiments:
        metrics = [run.metrics for run in experiment.runs if not run.diverged]
        names = {field: str(MetricName(field, split)) for field in PARTS}
        if metrics and all(name in m for m in metrics for name in names.values()):
            parts = [{field: m[name] for field, name in names.items()} for m in metrics]
            bars.append(mean_bar(experiment.label, parts))
    return bars


def differences_figure(table: DifferenceTable) -> Figure:
    """Draws one panel per metric that is compared, and in it one line per comparison.

    Args:
      table: The comparisons. A comparison without an interval is drawn as a dot.
    """
    width, height = 3.4 + 2.1 * len(table.columns), 0.9 + 0.32 * len(table.rows)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, table.columns, strict=True):
        axes.axvline(0, color="0.6", lw=1)
        for y, row in enumerate(table.rows):
            if column in row.differences:
                _draw_difference(axes, y, row.differences[column])
        axes.set_xlabel(f"{column} (points)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(
        range(len(table.rows)), [plain_text(row.name, 3, 10) for row in table.rows]
    )
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)  # the first comparison at the top
    return figure


def _draw_difference(axes: Axes, y: int, value: Difference) -> None:
    color = "tab:blue"
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [y, y], color=color, lw=1.5)
    axes.plot(value.mean, y, "o", color=color, markersize=4)


def _points(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """Returns (N, 2) steps and values of a metric, averaged if there are many."""
    found = [(r["step"], r[name]) for r in records if _is_finite(r.get(name))]
    parts = np.array_split(found, min(len(found), MAX_POINTS)) if found else []
    return np.array([np.mean(part, axis=0) for part in parts]).reshape(-1, 2)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
