"""Tables of ensembles: differences are paired by seed."""

import json

import numpy as np
import pytest
from scipy import stats

from vmoe_prc.config import ConfigError
from vmoe_prc.study.ensemble.tables import differences_table, main, means_table


def run(variant, seed, accuracy):
    others = ("top1", "chance", "image", "place", "kappa_place", "use", "crop_accuracy")
    others += ("same_label", "noise_0.1/kappa", "noise_0.3/kappa")
    routed = {f"accuracy/{name}": accuracy for name in ("own", "other_view", "random")}
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": accuracy,
        "nll": 1.5,
        **routed,
    } | dict.fromkeys(others, 0.5)


RUNS = [run("a", s, x) for s, x in enumerate((0.50, 0.60, 0.70))] + [
    run("b", s, x) for s, x in enumerate((0.52, 0.61, 0.73, 0.99))
]


def test_means_and_spreads():
    header, a, b = means_table(RUNS)
    assert (a[0], a[1], a[2]) == ("a", "3", "60.00 ± 10.00")
    assert b[1] == "4"
    assert a[header.index("D_view")] == "0.00 ± 0.00"


def test_differences_are_paired_by_seed():
    _, b = differences_table(RUNS, "a")
    low, high = stats.ttest_1samp(np.array([2, 1, 3]), 0).confidence_interval()
    assert b[:3] == ["b", "3", f"+2.00 [{low:+.2f}, {high:+.2f}]"]


def test_two_pairs_have_no_interval():
    _, b = differences_table(RUNS[:2] + RUNS[3:5], "a")
    assert b[1:3] == ["2", "+1.50"]


def test_an_unknown_reference_is_an_error():
    with pytest.raises(ConfigError, match="expected one of a, b"):
        differences_table(RUNS, "c")


def test_the_command_shows_the_columns_that_are_asked_for(tmp_path, capsys):
    path = tmp_path / "main.jsonl"
    path.write_text("".join(f"{json.dumps(run)}\n" for run in RUNS))
    assert main([str(path), "--reference=a", "--columns", "NLL", "accuracy"]) == 0
    means, differences = capsys.readouterr().out.split("\n\n")
    assert means.splitlines()[0].split(" | ")[1:] == ["n", "NLL", "accuracy |"]
    assert "150.00 ± 0.00 | 60.00 ± 10.00" in means
    assert "+0.00 [" in differences and "+2.00 [" in differences
