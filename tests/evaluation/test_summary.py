"""The final table: every number in its place, and nothing wider than a terminal."""

from pathlib import Path

import pytest

from vmoe_prc.evaluation.summary import format_summary

RESULTS = {
    "test/loss": 1.23456,
    "test/accuracy": 0.75921,
    "val/accuracy": 0.8,
    "test/encoderblock_11/top1": 0.25,
    "test/encoderblock_11/top2": 0.125,
    "test/encoderblock_11/top2_unordered": 0.2,
    "test/encoderblock_11/overlap": 0.375,
    "test/encoderblock_11/dropped": 0.0314,
    "test/encoderblock_11/load/0": 0.9,
    "test/encoderblock_11/load/1": 0.1,
    "test/encoderblock_5/top1": 0.75,
    "test/encoderblock_5/top2": 0.625,
    "test/encoderblock_5/top2_unordered": 0.7,
    "test/encoderblock_5/overlap": 0.8,
    "test/encoderblock_5/dropped": 0.0,
    "test/encoderblock_5/load/1": 0.45,
    "test/encoderblock_5/load/0": 0.55,
    "test/top1": 0.5,
    "test/top2": 0.375,
    "test/top2_unordered": 0.45,
    "test/overlap": 0.5875,
    "test/dropped": 0.0157,
}


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_the_whole_table():
    paths = {"checkpoint": "run/checkpoints/10", "picture": Path("run/routing.png")}
    assert format_summary(RESULTS, paths) == "\n".join(
        [
            "Classification",
            "──────────────",
            "  split  accuracy %    loss",
            "  test        75.92  1.2346",
            "  val         80.00       -",
            "",
            "Routing, test: agreement of matched patches and dropped tokens (%)",
            "──────────────────────────────────────────────────────────────────",
            "  block            top-1  top-2  top-2 unord.  overlap  dropped",
            "  encoderblock_5   75.00  62.50         70.00    80.00     0.00",
            "  encoderblock_11  25.00  12.50         20.00    37.50     3.14",
            "  all blocks       50.00  37.50         45.00    58.75     1.57",
            "",
            "Load, test: share of the kept tokens that each expert got (%)",
            "─────────────────────────────────────────────────────────────",
            "  block                0      1",
            "  encoderblock_5   55.00  45.00",
            "  encoderblock_11  90.00  10.00",
            "",
            "Files",
            "─────",
            "  checkpoint  run/checkpoints/10",
            "  picture     run/routing.png",
        ]
    )


def test_no_top_2_where_one_expert_is_chosen():
    results = {name: value for name, value in RESULTS.items() if "top2" not in name}
    text = format_summary(results)
    assert "top-2" not in text
    assert ["encoderblock_5", "75.00", "80.00", "0.00"] in rows(text)


def test_splits_without_pairs_have_no_agreement():
    results = {"val/accuracy": 0.5, "val/encoderblock_1/dropped": 0.25, "val/dropped": 0.25}
    text = format_summary(results)
    assert ["block", "dropped"] in rows(text)
    assert "top-1" not in text


def test_a_dense_model_has_no_routing():
    text = format_summary({"test/accuracy": 0.5, "test/loss": 2})
    assert text.splitlines()[-1].split() == ["test", "50.00", "2.0000"]
    assert "Routing" not in text and "Load" not in text


@pytest.mark.parametrize("num_experts", [8, 12, 32])
def test_the_load_of_many_experts_is_whole_and_narrow(num_experts):
    results = {f"test/encoderblock_10/load/{e}": e / 1000 for e in range(num_experts)}
    text = format_summary(results)
    assert max(map(len, text.splitlines())) <= 100
    assert ["encoderblock_10", *(f"{e / 10:.2f}" for e in range(8))] in rows(text)
    if num_experts > 8:
        assert [
            "from",
            "8",
            *(f"{e / 10:.2f}" for e in range(8, min(16, num_experts))),
        ] in rows(text)
    assert f"{(num_experts - 1) / 10:.2f}" in text


def test_metrics_that_one_block_lacks_are_dashes():
    results = {"test/encoderblock_1/top1": 0.5, "test/encoderblock_3/dropped": 0.25}
    table = rows(format_summary(results))
    assert ["encoderblock_1", "50.00", "-"] in table
    assert ["encoderblock_3", "-", "25.00"] in table


def test_nothing_at_all():
    assert format_summary({}) == ""
