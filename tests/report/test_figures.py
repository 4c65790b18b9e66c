"""Figures of reports: positions of their marks, and colours that agree between figures."""

import math

import numpy as np
import pandas as pd
import pytest

from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
from vmoe_prc.figures.agreement_bars import agreement_figure
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.figures import agreement_bars, differences_figure, learning_curve
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


def test_agreement_is_averaged_over_runs_that_converged(tmp_path):
    parts = {"chance": 0.1, "image": 0.2, "place": 0.3, "kappa": 0.5, "kappa_place": 0.4}

    def run(seed, **changes):
        metrics = {f"test_pairs/{name}": value for name, value in (parts | changes).items()}
        return Run(tmp_path, {"seed": seed}, {"test/loss": changes.get("loss", 1.0), **metrics}, [])

    runs = (run(0), run(1, place=0.5), run(2, place=1.0, loss=math.nan))
    without = Experiment("digits", "L2", 2, "", (Run(tmp_path, {"seed": 0}, {}, []),))
    (bar,) = agreement_bars([Experiment("digits", "PRC", 2, "", runs), without])
    assert (bar.label, bar.chance, bar.place) == ("PRC, k=2", 0.1, pytest.approx(0.4))
    figure = agreement_figure([bar])
    widths = [patch.get_width() for patch in figure.axes[0].patches[:3]]
    assert widths == pytest.approx([10, 20, 40])
    assert {"50.0", "40.0"} <= {text.get_text() for text in figure.axes[0].texts}


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
