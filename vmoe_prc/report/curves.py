"""Learning curves of many runs: a colour an experiment, a line a seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from vmoe_prc.figures.palette import expert_colors
from vmoe_prc.report.experiments import Experiment

# What is drawn of a run, if it has it: its title, and the factor from its unit to the title's.
CURVES = {
    "train/main_loss": ("classification loss, training", 1.0),
    "train/auxiliary_loss": ("loss on the routers, training", 1.0),
    "val/accuracy": ("top-1 accuracy, val (%)", 100.0),
    "test/accuracy": ("top-1 accuracy, test (%)", 100.0),
    "test_pairs/top1": ("top-1 agreement of two views, test (%)", 100.0),
}
# Long runs are averaged over so many stretches of steps: more points than that are not seen.
MAX_POINTS = 150
_SIZE = (4.4, 2.6)


class Style(NamedTuple):
    """How the lines of an experiment look.

    Attributes:
      color: `#rrggbb`.
      line: 'solid', 'dashed' or 'dotted', as matplotlib and CSS call it.
    """

    color: str
    line: str


def line_styles(count: int) -> list[Style]:
    """Returns styles of experiments; colours that come again come with other dashes."""
    # All but yellow, which is not seen on white; in the order of the curves of robustness.
    colors = [to_hex(color) for color in expert_colors(6)[[4, 0, 5, 2, 1]]]
    lines = ("solid", "dashed", "dotted")
    return [Style(colors[i % 5], lines[i // 5 % 3]) for i in range(count)]


def available_curves(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the names in `CURVES` that some run has finite values of."""
    runs = [run for experiment in experiments for run in experiment.runs]
    return [name for name in CURVES if any(len(_points(run.records, name)) for run in runs)]


def learning_curve(experiments: Sequence[Experiment], name: str) -> Figure:
    """Draws a metric that runs wrote while they were trained, by step.

    Args:
      experiments: Experiments with the same data set.
      name: One of `CURVES`.

    Returns:
      A figure in the current style of matplotlib, its lines in those of `line_styles`.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    title, factor = CURVES[name]
    for experiment, style in zip(experiments, line_styles(len(experiments)), strict=True):
        for run in experiment.runs:
            points = _points(run.records, name)
            # A run that is evaluated seldom shows when.
            marker = "o" if len(points) < 12 else ""
            axis.plot(
                *(points * (1, factor)).T,
                color=style.color,
                linestyle=style.line,
                linewidth=1.4,
                alpha=0.85,
                marker=marker,
                markersize=4,
            )
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    return figure


def _points(records: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """Returns (N, 2) steps and values of a metric, those of long runs averaged."""
    found = [(r["step"], r[name]) for r in records if math.isfinite(r.get(name, math.nan))]
    parts = np.array_split(found, min(len(found), MAX_POINTS)) if found else []
    return np.array([np.mean(part, axis=0) for part in parts]).reshape(-1, 2)
