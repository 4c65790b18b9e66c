"""Figures of reports: positions of their marks, and colours that agree between figures."""

import numpy as np
import pandas as pd
import pytest

from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.figures import differences_figure, learning_curve
from vmoe_prc.report.models import named_styles, short_names
from vmoe_prc.report.paired import Comparison, Difference, DifferenceTable
from vmoe_prc.report.runs import Run


@pytest.fixture(scope="module")
def axes():
    rows = (
        Comparison("a - b", (0, 1), {"x": Difference(2.0, 1.0, 3.0), "y": Difference(9, 8, 10)}),
        Comparison("c - d", (0,), {"x": Difference(-1.0, None, None)}),
    )
    return differences_figure(DifferenceTable("title", ("x", "y"), rows)).axes


def lines(axis):
    """Points of all lines but that at zero."""
    return [np.transpose(line.get_data()).tolist() for line in axis.lines[1:]]


def test_a_panel_a_figure_with_means_and_intervals(axes):
    x, y = axes
    assert lines(x) == [[[1, 0], [3, 0]], [[2, 0]], [[-1, 1]]]
    assert lines(y) == [[[8, 0], [10, 0]], [[9, 0]]]
    assert "x (points)" in x.get_xlabel()


def test_the_first_comparison_is_at_the_top(axes):
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a - b", "c - d"]
    bottom, top = axes[0].get_ylim()
    assert bottom > 1 > 0 > top


def test_an_experiment_has_one_colour_in_all_figures(tmp_path):
    """Learning curves and robustness, also where the first experiment has no routing."""
    run = Run(tmp_path, {"seed": 0}, {}, [{"step": s, "test/accuracy": 0.5} for s in (1, 2)])
    experiments = [
        Experiment("digits", method, 2, "", (run,)) for method in ("dense", "V-MoE", "PRC", "L2")
    ]
    learning = learning_curve(experiments, "test/accuracy").axes[0].lines
    names = short_names(experiments)
    levels = {"perturbation": "shift", "block": "all", "level": [0.0, 1.0], "changed": [0.0, 0.1]}
    rest = {"accuracy": 0.5, "distance": [0.0, 1.0], "jump": 1.0}
    tables = {name: pd.DataFrame({**levels, **rest}) for name in names[1:]}
    table = pd.concat([frame.assign(run=name) for name, frame in tables.items()])
    figure = robustness_figure(table, {"shift": "pixels"}, named_styles(experiments))
    robustness = figure.axes[0].lines
    assert [line.get_label() for line in robustness] == names[1:]
    assert [line.get_color() for line in robustness] == [line.get_color() for line in learning[1:]]
    assert len({line.get_color() for line in learning}) == 4
