"""Paired differences against SciPy, and which runs are paired."""

import csv
import io
import pathlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.formats import differences_to_csv, to_markdown
from vmoe_prc.report.paired import compare, difference_table, paired_difference
from vmoe_prc.report.runs import Run


def run(seed, accuracy, **metrics):
    return Run(pathlib.Path("x"), {"seed": seed}, {"test/accuracy": accuracy, **metrics}, [])


def experiment(method, runs):
    return Experiment("digits", method, 2, "", tuple(runs))


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=3, max_size=9),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_interval_is_that_of_student(pairs, level):
    a, b = np.transpose(pairs) / 100  # shares in %, of 10,000 images
    found = paired_difference(a.tolist(), b.tolist(), level)
    error = scipy.stats.sem(a - b)
    assert found.mean == pytest.approx(np.mean(a - b), abs=1e-9)
    if error > 1e-9:
        low, high = scipy.stats.t.interval(level, len(a) - 1, np.mean(a - b), error)
        np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-6, atol=1e-9)
    else:
        assert found.low is None


def test_what_a_seed_does_to_both_cancels():
    a, b = [90.0, 80.0, 70.0], [89.0, 79.0, 69.0]
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(1)


def test_no_interval_that_means_nothing():
    """Of one or two seeds, or of differences that are all the same multiple of an image."""
    for a, b in (([3.0], [1.0]), ([3.0, 5.0], [1.0, 2.0]), ([96.875] * 4, [93.75] * 4)):
        found = paired_difference(a, b)
        assert (found.low, found.high) == (None, None)
        assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    with pytest.raises(ValueError, match="no pair"):
        paired_difference([], [])


def test_only_seeds_of_both_are_compared_in_whatever_order():
    a = [run(2, 0.9), run(0, 0.8), run(5, 0.1)]
    b = [run(0, 0.7), run(1, 0.0), run(2, 0.6)]
    found = compare(experiment("PRC", a), experiment("V-MoE", b))
    assert found.name == "PRC, k=2 \N{MINUS SIGN} V-MoE, k=2"
    assert found.seeds == (0, 2)
    assert found.differences["top-1 accuracy"].mean == pytest.approx(20)


def test_a_figure_that_a_run_lacks_is_not_compared():
    both = [run(0, 0.9, **{"test_pairs/top1": 0.5})]
    found = compare(experiment("PRC", both), experiment("V-MoE", [run(0, 0.7)]))
    assert list(found.differences) == ["top-1 accuracy"]
    same = compare(experiment("PRC", both), experiment("V-MoE", both))
    assert list(same.differences) == ["top-1 accuracy", "top-1 agreement"]


def test_table_and_formats():
    a, b = ([run(s, x + s / 100) for s in (0, 1)] for x in (0.9, 0.8))
    baseline = experiment("V-MoE", b)
    arms = {"PRC": a, "L2": a[:1], "JSD": [run(7, 0.5)]}
    compared = [compare(experiment(name, runs), baseline) for name, runs in arms.items()]
    table = difference_table(compared)
    assert table.columns == ("top-1 accuracy",)
    text = to_markdown([table])
    assert "V-MoE, k=2 | 2 | +10.00 |" in text
    assert "V-MoE, k=2 | 1 | +10.00 |" in text
    assert "JSD" not in text  # no seed in common
    records = list(csv.DictReader(io.StringIO(differences_to_csv(table))))
    assert [(r["comparison"], r["seeds"], r["low"]) for r in records][1] == (
        "L2, k=2 \N{MINUS SIGN} V-MoE, k=2",
        "0",
        "",
    )
    assert float(records[0]["mean"]) == pytest.approx(10)
