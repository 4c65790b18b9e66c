"""The picture of paired differences: where its marks are."""

import numpy as np
import pytest

from vmoe_prc.report.differences import differences_figure
from vmoe_prc.report.paired import Comparison, Difference, DifferenceTable


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
