"""Tables of ensembles: differences are paired by seed."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vmoe_prc.config import ConfigError
from vmoe_prc.study.ensemble.tables import agreement_bars, differences_table, main, means_table


def run(variant, seed, accuracy):
    others = ("top1", "chance", "image", "place", "kappa", "kappa_place", "use")
    others += ("crop_accuracy", "same_label", "noise_0.1/kappa", "noise_0.3/kappa")
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
    [b] = differences_table(RUNS, "a").rows
    low, high = stats.ttest_1samp(np.array([2, 1, 3]), 0).confidence_interval()
    found = b.differences["accuracy"]
    np.testing.assert_allclose([found.mean, found.low, found.high], [2, low, high])
    assert (b.name, b.seeds) == ("b", (0, 1, 2))


def test_two_pairs_have_no_interval():
    [b] = differences_table(RUNS[:2] + RUNS[3:5], "a").rows
    assert b.differences["accuracy"].mean == pytest.approx(1.5)
    assert b.differences["accuracy"].low is None


def test_agreement_is_averaged_over_seeds():
    a, b = agreement_bars([RUNS[0] | {"place": 0.1}, RUNS[1] | {"place": 0.3}, RUNS[3]])
    assert (a.label, a.place, a.chance) == ("a", pytest.approx(0.2), 0.5)
    assert (b.label, b.place) == ("b", 0.5)


def test_an_unknown_reference_is_an_error():
    with pytest.raises(ConfigError, match="expected one of a, b"):
        differences_table(RUNS, "c")


def test_a_seed_counts_once():
    with pytest.raises(ConfigError, match="'a': has seed 0 twice"):
        means_table([*RUNS, RUNS[0]])


def test_the_command_shows_the_columns_that_are_asked_for(tmp_path, capsys):
    path = tmp_path / "main.jsonl"
    path.write_text("".join(f"{json.dumps(run)}\n" for run in RUNS))
    pictures = [f"--differences={tmp_path}/differences.png", f"--agreement={tmp_path}/bars.png"]
    command = [str(path), "--reference=a", "--columns", "NLL", "accuracy", *pictures]
    assert main(command) == 0
    means, title, differences = capsys.readouterr().out.split("\n\n")
    assert title == "**Differences from a, paired over seeds**"
    assert means.splitlines()[0].split(" | ")[1:] == ["n", "NLL", "accuracy |"]
    assert "150.00 ± 0.00 | 60.00 ± 10.00" in means
    # Equal differences have no interval.
    assert "| 3 | +0.00 | +2.00 [" in differences
    for picture in ("differences.png", "bars.png"):
        assert min(Image.open(tmp_path / picture).size) > 100


def test_columns_are_fields_of_the_lines_too(tmp_path, capsys):
    path = tmp_path / "main.jsonl"
    path.write_text("".join(f"{json.dumps(run)}\n" for run in RUNS))
    assert main([str(path), "--columns", "accuracy/own"]) == 0
    assert "| a | 3 | 60.00 ± 10.00 |" in capsys.readouterr().out
    # A percentage of a seed or of a name means nothing.
    assert main([str(path), "--columns", "seed"]) == main([str(path), "--columns", "variant"]) == 2
    capsys.readouterr()
    assert main([str(path), "--columns", "accuracy_"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --columns = 'accuracy_'") and error.count("\n") == 1
    assert "did you mean 'accuracy'?" in error


def test_a_picture_of_differences_needs_a_reference(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "main.jsonl"), "--differences=x.png"])
    assert "--differences needs --reference" in capsys.readouterr().err
