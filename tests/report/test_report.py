"""Tables of runs: figures over seeds, what is left out, and their formats."""

import csv
import io
import json
import statistics
import subprocess
import sys

import pytest
from written_runs import write_arm, write_run

from configs import cifar_prc, digits_prc
from vmoe_prc.report.__main__ import main
from vmoe_prc.report.experiments import group_runs
from vmoe_prc.report.formats import to_text
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
    figure = accuracy.rows[2].estimates["top-1 accuracy"]
    assert figure.mean == pytest.approx(97)
    assert figure.std == pytest.approx(statistics.stdev([97, 95, 99]))
    assert accuracy.rows[1].estimates["top-1 accuracy"].std is None
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
    assert use.rows[0].estimates["experts in use"].mean == pytest.approx((100 + 50) / 2)


def test_published_figures_stand_beside(tmp_path):
    write_arm(tmp_path, "dataset=cifar100,k=1,prc=on", [0.82, 0.81], cifar_prc)
    write_arm(tmp_path, "dataset=cifar10,k=2,prc=off", [0.95, 0.94], cifar_prc)
    (accuracy, _), _ = tables_of(tmp_path)
    assert [row.experiment.dataset for row in accuracy.rows] == ["cifar100", "cifar10"]
    published = [row.estimates["top-1 accuracy, published"] for row in accuracy.rows]
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


def test_long_settings_become_notes(tmp_path):
    for seed, batch_size in enumerate([64, 32]):
        config = digits_prc.get_config(f"prc=off,seed={seed}")
        config.dataset.train.batch_size = batch_size
        config.optimizer.learning_rate.warmup_steps = batch_size
        write_run(tmp_path / str(seed), config, 0.9)
    lines = to_text(tables_of(tmp_path)[0]).splitlines()
    assert max(map(len, lines)) < 100
    notes = ["dataset.train.batch_size=64", "optimizer.learning_rate.warmup_steps=64"]
    assert any(line.endswith(notes[0]) and line.startswith("[") for line in lines)
    assert f"    {notes[1]}" in lines
    assert any(line.split()[:4] == ["digits", "V-MoE", "2", "[1]"] for line in lines)


def test_a_seed_counts_once_and_an_unfinished_run_never(tmp_path):
    write_arm(tmp_path / "first", "k=2,prc=on", [0.9, 0.8])
    write_arm(tmp_path / "second", "k=2,prc=on", [0.1])
    write_run(tmp_path / "third", digits_prc.get_config("seed=7"), 0.1, finished=False)
    (accuracy, _), warnings = tables_of(tmp_path, tmp_path / "first")
    assert accuracy.rows[0].experiment.seeds == (0, 1)
    assert accuracy.rows[0].estimates["top-1 accuracy"].mean == pytest.approx(85)
    unfinished, duplicate = warnings
    assert "third: not finished" in unfinished
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


def test_runs_on_other_images_are_another_experiment(tmp_path):
    for seed, folder in enumerate(["a", "b"]):
        config = digits_prc.get_config("prc=off,seed=0")
        for dataset in config.dataset.values():
            dataset.manual_dir = f"/photos/{folder}"
        write_run(tmp_path / str(seed), config, 0.9)
    (accuracy, _), warnings = tables_of(tmp_path)
    assert warnings == []  # the same seed, but no duplicate
    assert [row.experiment.seeds for row in accuracy.rows] == [(0,), (0,)]
    assert all("manual_dir=/photos/" in row.experiment.settings for row in accuracy.rows)


def test_digests_tell_data_apart_wherever_they_are(tmp_path):
    """The same images elsewhere are the same experiment, other images in one place another."""
    for seed, (folder, digest) in enumerate([("a", "1f"), ("b", "1f"), ("b", "2e")]):
        config = digits_prc.get_config(f"prc=off,seed={seed}")
        for dataset in config.dataset.values():
            dataset.manual_dir = f"/photos/{folder}"
        write_run(tmp_path / str(seed), config, 0.9)
        data = {name: {"digest": digest, "classes": ["a", "b"]} for name in config.dataset}
        (tmp_path / str(seed) / "data.json").write_text(json.dumps(data))
    (accuracy, _), _ = tables_of(tmp_path)
    assert [row.experiment.seeds for row in accuracy.rows] == [(0, 1), (2,)]
    assert "data.test=2e" in accuracy.rows[1].experiment.settings


def test_a_configuration_that_changed_on_resume_is_told_and_no_seed_of_the_others(tmp_path):
    write_arm(tmp_path, "k=2,prc=on", [0.9, 0.8])
    config = digits_prc.get_config("k=2,prc=on,seed=2")
    write_run(tmp_path / "changed", config, 0.4)
    stretches = []
    for after_step, changes in [(0, {"ema_decay": 0.5}), (4, {"profile": True}), (9, {})]:
        earlier = json.loads(json.dumps(config.to_dict() | changes, default=list))
        stretches.append({"after_step": after_step, "config": earlier})
    (tmp_path / "changed" / "config_history.json").write_text(json.dumps(stretches))
    (accuracy, _), warnings = tables_of(tmp_path)
    assert warnings == [
        f"{tmp_path / 'changed'}: its configuration changed after step 4: ema_decay was 0.5, then -"
    ]
    assert {row.experiment.settings: row.experiment.seeds for row in accuracy.rows} == {
        "ema_decay until step 4=None": (0, 1),
        "ema_decay until step 4=0.5": (2,),
    }


def test_a_diverged_run_counts_in_no_mean(tmp_path):
    write_arm(tmp_path, "k=2,prc=on", [0.9])
    nan = {"test/loss": "NaN"}
    write_run(tmp_path / "nan", digits_prc.get_config("k=2,prc=on,seed=1"), 0.1, 1.0, metrics=nan)
    write_run(tmp_path / "all", digits_prc.get_config("k=1,prc=on"), 0.1, 1.0, metrics=nan)
    tables, warnings = tables_of(tmp_path)
    assert [warning.split(":")[1] for warning in warnings] == [" diverged"] * 2
    text = to_text(tables)
    assert "1 + 1 diverged  90.00" in text and "0 + 1 diverged  -" in text
    assert "100.00" not in text


def test_images_and_sampling_error(tmp_path):
    images = {"test/images": 32}
    write_run(tmp_path / "a", digits_prc.get_config("prc=on"), 31 / 32, metrics=images)
    write_run(tmp_path / "b", digits_prc.get_config("prc=off"), 32 / 32, metrics=images)
    (accuracy, _), _ = tables_of(tmp_path)
    by_method = {row.experiment.method: row.estimates for row in accuracy.rows}
    assert {estimates["images"].mean for estimates in by_method.values()} == {32}
    # (31 + 2) / 36 and (32 + 2) / 36: an accuracy of 100% of 32 images is not exact.
    assert by_method["PRC"]["sampling error"].mean == pytest.approx(4.61, abs=0.01)
    assert by_method["V-MoE"]["sampling error"].mean == pytest.approx(3.82, abs=0.01)


def test_a_directory_without_finished_runs_hides_no_other(tmp_path, capsys):
    write_arm(tmp_path / "good", "k=2,prc=on", [0.97])
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "good")]) == 0
    shown = capsys.readouterr()
    assert "97.00" in shown.out and f"warning: {tmp_path / 'empty'}: no finished run" in shown.err


DAMAGES = {
    "a list": ("config.json", b"[]"),
    "deep": ("config.json", b"[" * 100_000),
    "bytes": ("config.json", b"\xff\xfe"),
    "a field": ("config.json", b'{"seed": 0, "consistency": null, "dataset": 3}'),
    "no record": ("metrics.jsonl", b"[]\n{}\n"),
    "binary": ("metrics.jsonl", b"\xff\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_and_skipped(tmp_path, capsys, damage):
    write_arm(tmp_path / "good", "k=2,prc=on", [0.97])
    write_run(tmp_path / "bad", digits_prc.get_config(), 0.5)
    name, content = DAMAGES[damage]
    (tmp_path / "bad" / name).write_bytes(content)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "97.00" in shown.out and f"warning: left out: {tmp_path / 'bad'}: " in shown.err


def test_a_home_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_arm(tmp_path / "runs", "k=2,prc=on", [0.97])
    assert main(["~/runs"]) == 0
    assert "97.00" in capsys.readouterr().out


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
