"""Tables of runs: figures over seeds, what is left out, and their formats."""

import csv
import io
import statistics
import subprocess
import sys

import pytest
from written_runs import write_arm, write_run

from configs import cifar_prc, digits_prc
from vmoe_prc.report.__main__ import main
from vmoe_prc.report.experiments import group_runs
from vmoe_prc.report.runs import find_runs
from vmoe_prc.report.tables import make_tables


def tables_of(*directories):
    runs, left_out = find_runs(directories)
    experiments, duplicates = group_runs(runs)
    return make_tables(experiments), left_out + duplicates


def test_mean_and_spread_over_seeds(tmp_path):
    write_arm(tmp_path, "k=2,prc=on", [0.97, 0.95, 0.99])
    write_arm(tmp_path, "k=2,prc=off", [0.9])
    write_arm(tmp_path, "k=1,prc=on", [0.8, 0.7])
    (accuracy, agreement), warnings = tables_of(tmp_path)
    assert warnings == []
    assert [
        (row.experiment.method, row.experiment.k, row.experiment.seeds) for row in accuracy.rows
    ] == [
        ("PRC", 1, (0, 1)),
        ("V-MoE", 2, (0,)),
        ("PRC", 2, (0, 1, 2)),
    ]
    figure = accuracy.rows[2].figures["top-1 accuracy"]
    assert figure.mean == pytest.approx(97)
    assert figure.std == pytest.approx(statistics.stdev([97, 95, 99]))
    assert accuracy.rows[1].figures["top-1 accuracy"].std is None
    assert agreement.columns == ("top-1",)


def test_experts_in_use_are_those_that_would_have_the_entropy_of_the_load(tmp_path):
    loads = {"encoderblock_1": [0.25] * 4, "encoderblock_3": [0.5, 0.5, 0.0, 0.0]}
    metrics = {
        f"test/{block}/load/{expert}": share
        for block, load in loads.items()
        for expert, share in enumerate(load)
    }
    # Another split does not count.
    metrics["val/encoderblock_1/load/0"] = 1.0
    write_run(tmp_path / "run", digits_prc.get_config(), 0.9, metrics=metrics)
    (_, _, use), _ = tables_of(tmp_path)
    assert use.rows[0].figures["experts in use"].mean == pytest.approx((100 + 50) / 2)


def test_published_figures_stand_beside(tmp_path):
    write_arm(tmp_path, "dataset=cifar100,k=1,prc=on", [0.82, 0.81], cifar_prc)
    write_arm(tmp_path, "dataset=cifar10,k=2,prc=off", [0.95, 0.94], cifar_prc)
    (accuracy, _), _ = tables_of(tmp_path)
    assert [row.experiment.dataset for row in accuracy.rows] == ["cifar100", "cifar10"]
    published = [row.figures["top-1 accuracy, published"] for row in accuracy.rows]
    assert [(f.mean, f.std) for f in published] == [(82.12, 0.18), (95.20, 0.07)]


def test_other_settings_are_another_row_and_other_paths_are_not(tmp_path):
    for seed, batch_size in enumerate([64, 64, 32]):
        config = digits_prc.get_config(f"prc=off,seed={seed}")
        config.dataset.train.batch_size = batch_size
        config.dataset.train.data_dir = f"/data/{seed}"
        write_run(tmp_path / str(seed), config, 0.9)
    (accuracy, _), _ = tables_of(tmp_path)
    assert {row.experiment.settings: row.experiment.seeds for row in accuracy.rows} == {
        "dataset.train.batch_size=64": (0, 1),
        "dataset.train.batch_size=32": (2,),
    }


def test_a_seed_counts_once_and_an_unfinished_run_never(tmp_path):
    write_arm(tmp_path / "first", "k=2,prc=on", [0.9, 0.8])
    write_arm(tmp_path / "second", "k=2,prc=on", [0.1])
    write_run(tmp_path / "third", digits_prc.get_config("seed=7"), 0.1, finished=False)
    (accuracy, _), warnings = tables_of(tmp_path, tmp_path / "first")
    assert accuracy.rows[0].experiment.seeds == (0, 1)
    assert accuracy.rows[0].figures["top-1 accuracy"].mean == pytest.approx(85)
    unfinished, duplicate = warnings
    assert "third: has not ended" in unfinished
    assert "second" in duplicate and "seed 0" in duplicate


def test_formats(tmp_path, capsys):
    write_arm(tmp_path, "k=2,prc=on", [0.97, 0.95])
    shown = {}
    for name in ("text", "markdown", "csv"):
        assert main([str(tmp_path), f"--format={name}"]) == 0
        shown[name] = capsys.readouterr().out
    assert "digits    PRC     2  2      96.00 ± 1.41" in shown["text"]
    assert "| digits | PRC | 2 | 2 | 96.00 ± 1.41 |" in shown["markdown"]
    row = next(csv.DictReader(io.StringIO(shown["csv"])))
    assert (row["dataset"], row["seeds"], float(row["mean"])) == ("digits", "0 1", 96.0)


def test_output_goes_to_a_file(tmp_path):
    write_arm(tmp_path, "k=2,prc=on", [0.97])
    assert main([str(tmp_path), "--format=csv", f"--output={tmp_path / 'x.csv'}"]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("table,dataset,method")


@pytest.mark.parametrize("name", ["missing", "empty", "damaged"])
def test_nothing_to_report(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "damaged" / "run", digits_prc.get_config(), 0.5)
    (tmp_path / "damaged" / "run" / "config.json").write_text("{")
    assert main([str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err


def test_needs_neither_jax_nor_tensorflow():
    code = (
        "import sys, vmoe_prc.report.__main__; "
        "assert not {'jax', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
