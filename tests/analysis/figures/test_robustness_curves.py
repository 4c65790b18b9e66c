"""Curves of robustness: a line a run, and no jump where nothing changes."""

import numpy as np
import pandas as pd

from vmoe_prc.analysis.figures.robustness_curves import PANELS, robustness_figure


def table(run, shift=0.0):
    level = np.arange(4.0)
    return pd.DataFrame(
        {
            "run": run,
            "perturbation": "shift",
            "block": "all",
            "level": level,
            "changed": level / 10 + shift,
            "accuracy": 1 - level / 10,
            "distance": level,
            "jump": np.where(level > 0, 2.0, 0.0),
        }
    )


def test_lines_are_the_rows_of_each_run():
    frame = pd.concat([table("a"), table("b", 0.1), table("b", 0.3)])
    figure = robustness_figure(frame, {"shift": "pixels"})
    panels = dict(zip(PANELS, figure.axes, strict=True))
    changed = [line.get_ydata() for line in panels["changed"].lines]
    np.testing.assert_allclose(changed, [[0, 10, 20, 30], [20, 30, 40, 50]])
    for line in panels["jump"].lines:
        np.testing.assert_allclose(line.get_xydata(), [[1, 2], [2, 2], [3, 2]])
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["a", "b"]
    assert panels["changed"].get_xlabel() == "shift (pixels)"
