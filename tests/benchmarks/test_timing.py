"""The timing of benchmarks: turns, ratios, tables and JSON, with clocks that we set."""

import itertools
import json

import pytest

from benchmarks import timing


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.take_turns(functions, repetitions=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert all(len(times[name].wall) == len(times[name].cpu) == 3 for name in "abc")


def test_clocks_bracket_the_call():
    ticks = itertools.count()
    cpu_ticks = itertools.count(0, 10)
    times = timing.take_turns(
        {"a": lambda: None}, 2, lambda: float(next(ticks)), lambda: float(next(cpu_ticks))
    )
    assert times["a"] == timing.Times([1.0, 1.0], [10.0, 10.0])


def test_ratios_are_of_the_same_round():
    # The machine is twice as slow in the second round: the ratio does not see it.
    times = {
        "base": timing.Times([1.0, 2.0, 1.0], [2.0, 2.0, 1.0]),
        "other": timing.Times([1.5, 3.0, 2.0], [3.0, 3.0, 3.0]),
    }
    rows = timing.compare(times, "base")
    assert rows["base"]["ratio"] == rows["base"]["low"] == rows["base"]["high"] == 1
    assert rows["other"] == {
        "seconds": 1.5,
        "cpu_seconds": 3.0,
        "ratio": 1.5,
        "low": 1.5,
        "high": 1.75,
        "least_ratio": 1.5,
        "cpu_ratio": 3.0,
    }


def test_one_round_has_no_spread():
    row = timing.compare({"a": timing.Times([2.0], [1.0])}, "a")["a"]
    assert (row["low"], row["ratio"], row["high"]) == (1, 1, 1)


def test_report_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    args = timing.parser("doc", 7).parse_args([f"--output={path}"])
    timing.report(args, [{"name": "a", "ratio": 1.23456}, {"name": "long", "ratio": 10.0}], note=1)
    assert capsys.readouterr().out == "name  ratio\n   a  1.235\nlong     10\n"
    record = json.loads(path.read_text())
    assert record["rows"][0]["ratio"] == pytest.approx(1.23456)
    assert (record["flags"], record["note"]) == ({"repetitions": 7}, 1)
    assert record["machine"]["cores"] >= 1 and "jax" in record["machine"]["versions"]
