"""Studies: what they plan, what is wrong with them, and that they go on after failures."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from bucket import bucket
from small_run import STEPS

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.signals import SAME_NOTICE_SECONDS
from vmoe_prc.study.__main__ import main
from vmoe_prc.study.plan import read_study
from vmoe_prc.study.results import write_results
from vmoe_prc.study.runner import child_process

SMALL = {
    "train_steps": STEPS,
    "model": {
        "hidden_size": 16,
        "patch_size": (8, 8),
        "encoder": {"num_layers": 1, "mlp_dim": 32, "moe": {"layers": (0,), "group_size": 68}},
    },
    "optimizer": {"learning_rate": {"warmup_steps": 2}},
    "save_checkpoint": {"every_steps": 3},
}
ARMS = (
    {"name": "vmoe", "title": "one view", "arguments": "prc=off"},
    {"name": "prc", "arguments": "prc=on"},
)


def write_study(directory, **changes):
    """Writes a study of digits; returns its path."""
    study = {
        "config": "configs/digits_prc.py",
        "seeds": (0, 1),
        "overrides": SMALL,
        "arms": ARMS,
        "comparisons": (("prc", "vmoe"),),
        **changes,
    }
    path = directory / "study.py"
    text = "import ml_collections\ndef get_config(arguments):\n"
    path.write_text(f"{text}    return ml_collections.ConfigDict({study!r})\n")
    return str(path)


def read(directory, **changes):
    return read_study(write_study(directory, **changes), directory / "work")


def finish(run, accuracy, top1):
    """Leaves what a run that has ended leaves, as far as reports read it."""
    run.workdir.mkdir(parents=True)
    (run.workdir / "config.json").write_text(json.dumps(run.config.to_dict(), default=list))
    record = {"step": 6, "time": 0, "test/accuracy": accuracy, "test_pairs/top1": top1}
    (run.workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (run.workdir / "summary.txt").write_text("done")


def test_runs_are_interleaved_and_differ_in_arm_and_seed_alone(tmp_path):
    study = read(tmp_path)
    names = ["vmoe/seed=0", "prc/seed=0", "vmoe/seed=1", "prc/seed=1"]
    assert [run.name for run in study.runs] == names
    assert [run.config.seed for run in study.runs] == [0, 0, 1, 1]
    assert {run.config.model.hidden_size for run in study.runs} == {16}
    assert [run.config.consistency is None for run in study.runs] == [True, False, True, False]


def test_another_loss_takes_the_place_of_the_whole_section(tmp_path):
    arm = {"name": "l2", "overrides": {"consistency": {"name": "l2", "weight": 0.5}}}
    config = read(tmp_path, arms=(arm,), comparisons=()).runs[0].config
    assert config.consistency.to_dict() == {
        "name": "l2",
        "weight": 0.5,
        "pair_class_tokens": False,
        "pairs": "matched",
        "stop_gradient": None,
        "blocks": None,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": (0,)}, "study.sedes .* did you mean 'seeds'"),
        ({"seeds": ()}, "study.seeds = .*expected different ints"),
        ({"seeds": (0, 0)}, "expected different ints"),
        ({"arms": ()}, "study.arms = .*at least one"),
        ({"arms": (ARMS[0], ARMS[0])}, "two arms have the same name"),
        ({"arms": ({"name": "a/b"},)}, "a name has letters"),
        ({"arms": ({"nam": "a"},)}, r"study.arms\[0\].nam = 'a': unknown field.*'name'"),
        ({"comparisons": (("prc", "vmo"),)}, r"study.comparisons\[0\] = 'vmo'.*'vmoe'"),
        ({"comparisons": ("prc",)}, r"expected \(arm, arm\)"),
        ({"config": "configs/digit.py"}, "study.config = 'configs/digit.py.*: no such file"),
        ({"overrides": {"model": {"hiden_size": 1}}}, "arm vmoe: config.model.hiden_size.*hidden"),
        ({"arms": ({"name": "a", "arguments": "prk=on"},)}, "arm a: config argument 'prk'.*prc"),
        ({"split": "tset"}, "study.split = 'tset': not in config.dataset of vmoe.*'test'"),
        (
            {"robustness": {"split": "x", "perturbations": {}}},
            "study.robustness.split = 'x'",
        ),
    ],
)
def test_mistakes_in_study_files(tmp_path, changes, message):
    if "arms" in changes:
        changes = {"comparisons": (), **changes}
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("get_config = 1 +", "invalid syntax"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "get_config"),
    ],
)
def test_files_that_are_no_studies(tmp_path, capsys, text, message):
    path = tmp_path / "study.py"
    if text is not None:
        path.write_text(text)
    assert main([f"--study={path}"]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path] * (text is not None)


def test_a_directory_with_other_runs_is_an_error(tmp_path):
    finish(read(tmp_path).runs[1], 0.5, 0.5)
    assert read(tmp_path).state(read(tmp_path).runs[1]) == "done"
    with pytest.raises(
        ConfigError, match=r"train_steps = 7: .*prc/seed=0 was begun with 6; remove"
    ):
        read(tmp_path, overrides={**SMALL, "train_steps": 7})
    # A section that was on, and one that was off.
    off = [{**ARMS[1], "overrides": {"consistency": None}}]
    with pytest.raises(ConfigError, match=r"consistency\.\w+ = None: .*was begun with"):
        read(tmp_path, arms=off, comparisons=())
    finish(read(tmp_path).runs[0], 0.5, 0.5)
    on = [{**ARMS[0], "overrides": {"consistency": {"name": "l2", "weight": 0.5}}}]
    with pytest.raises(ConfigError, match=r"consistency\.\w+ = .*vmoe/seed=0 was begun with None"):
        read(tmp_path, arms=on, comparisons=())


def test_tables_and_differences_of_a_part_of_the_runs(tmp_path):
    study = read(tmp_path)
    assert write_results(study) == ""
    for run, accuracy in zip(study.runs, (0.80, 0.85, 0.90), strict=False):
        finish(run, accuracy, accuracy - 0.3)
    text = write_results(study)
    assert "| digits | V-MoE | 2 | one view | 2 | 85.00 ± 7.07 |" in text
    assert "| digits | PRC | 2 |  | 1 | 85.00 |" in text
    assert "PRC, k=2 \N{MINUS SIGN} V-MoE, k=2, one view | 1 | +5.00 | +5.00 |" in text
    files = study.workdir
    assert "3 of 4 runs" in (files / "tables.md").read_text()
    assert text in (files / "tables.md").read_text()
    assert len((files / "differences.png").read_bytes()) > 1000
    runs = pd.read_csv(files / "runs.csv")
    assert runs["top-1 accuracy"].tolist() == pytest.approx([80, 90, 85])
    assert runs["seed"].tolist() == [0, 1, 0]
    finish(study.runs[3], 0.97, 0.5)
    assert "| 2 | +6.00 |" in write_results(study)


def test_a_config_beside_the_study_is_found_from_anywhere(tmp_path, monkeypatch):
    source = write_study(tmp_path, config="mine.py", arms=({"name": "a"},), comparisons=())
    text = "from configs import digits_prc\ndef get_config(arguments):\n"
    (tmp_path / "mine.py").write_text(f"{text}    return digits_prc.get_config('k=1')\n")
    monkeypatch.chdir(pathlib.Path(tmp_path).parent)
    (run, _) = read_study(source, tmp_path / "work").runs
    assert run.config.model.encoder.moe.router.num_selected_experts == 1


OUTPUT = "import sys; sys.stdout.buffer.write(b'caf\\xe9 \\xff\\n'); print('end')"


def test_output_that_is_no_utf8(tmp_path):
    with child_process([sys.executable, "-c", OUTPUT], os.environ) as process:
        assert [line.rstrip() for line in process.stdout] == ["caf\ufffd \ufffd", "end"]


# A child that says its id and does not end at SIGTERM.
STUBBORN = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(os.getpid(), flush=True)\nwhile True: time.sleep(0.05)"
)
PARENT = f"""
import os, sys
from vmoe_prc.study.runner import child_process
with child_process([sys.executable, "-c", {STUBBORN!r}], os.environ) as process:
    for line in process.stdout:
        print(line, end="", flush=True)
"""


def test_a_second_signal_leaves_no_child_running():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            parent.send_signal(number)
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            parent.wait(timeout=SAME_NOTICE_SECONDS)  # it waits for the child
        os.kill(child, 0)
        parent.terminate()
        assert parent.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# A child that works on after its output is closed, and says in a file that it has ended.
CAREFUL = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saving").write_text(str(os.getpid()))
    os.rename("saving", "saved")
    sys.exit()
signal.signal(signal.SIGTERM, save)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
def test_a_killed_study_ends_its_child_which_saves(tmp_path):
    command = [sys.executable, "-c", PARENT.replace(repr(STUBBORN), repr(CAREFUL))]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env
    ) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 20
    while not (tmp_path / "saved").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert (tmp_path / "saved").read_text() == str(child)


def test_dry_run_writes_nothing(tmp_path, capsys):
    path, work = write_study(tmp_path), tmp_path / "work"
    assert main([f"--study={path}", f"--workdir={work}", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines][1] == ["new", "prc/seed=0"]
    assert not work.exists()


def test_runs_as_json(tmp_path, capsys):
    path, work = write_study(tmp_path), tmp_path / "study"
    command = [f"--study={path}", f"--workdir={work}", "--dry_run"]
    assert main([*command, "--format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [[row["state"], row["name"], row["workdir"]] for row in rows] == [
        line.split() for line in lines
    ]


def test_tables_are_collected_from_what_is_done(tmp_path, capsys):
    study = read(tmp_path)
    arguments = [f"--study={study.source}", f"--workdir={study.workdir}", "--collect"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "no run is done\n"
    finish(study.runs[0], 0.5, 0.5)
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() in (study.workdir / "tables.md").read_text()


def test_a_study_in_a_bucket(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, workdir = write_study(tmp_path), "gs://bucket/study"
    with bucket() as files:
        for i, run in enumerate(read_study(source, workdir).runs[:3]):
            finish(run, 0.5 + i / 10, 0.5)
        assert main([f"--study={source}", f"--workdir={workdir}", "--collect"]) == 0
        assert (
            main([f"--study={source}", f"--workdir={workdir}", "--dry_run", "--format=json"]) == 0
        )
    printed, _, listed = capsys.readouterr().out.partition("[")
    rows = json.loads(f"[{listed}")
    assert [row["state"] for row in rows] == ["done"] * 3 + ["new"]
    assert rows[3]["workdir"] == f"{workdir}/runs/prc/seed=1"
    assert files["/bucket/study/tables.md"].getvalue().decode().count("3 of 4 runs") == 1
    assert printed.strip() in files["/bucket/study/tables.md"].getvalue().decode()
    # Nothing was written to a local directory `gs:`.
    assert [path.name for path in tmp_path.iterdir()] == ["study.py"]


def test_an_unknown_run(tmp_path, capsys):
    assert main([f"--study={write_study(tmp_path)}", "--only=prc/seed=7"]) == 2
    assert "--only = 'prc/seed=7': no such run; allowed: vmoe/seed=0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(pathlib.Path("configs/studies").glob("*.py")))
def test_studies_of_ours(tmp_path, name):
    study = read_study(str(name), tmp_path)
    seen = {
        (run.config.train_steps, run.config.dataset.train.batch_size * views(run.config))
        for run in study.runs
        # The two arms that ask what more images a step do.
        if not run.arm.endswith("_64")
    }
    assert len(seen) == 1  # steps, and images a step


def test_arms_of_the_ablations_change_what_they_say(tmp_path):
    runs = read_study("configs/studies/fashion_mnist_ablations.py:seeds=1", tmp_path).runs
    configs = {run.arm: run.config for run in runs}
    without = {name for name, config in configs.items() if config.consistency is None}
    assert without == {"none", "none_64", "one_view"}
    assert {name for name, config in configs.items() if views(config) == 1} == {"one_view"}
    balanced = {n for n, c in configs.items() if c.auxiliary_loss.load_loss_weight > 0}
    assert balanced == without | {"balance", "l2", "jsd"}


def test_two_arms_that_are_the_same_are_an_error(tmp_path):
    arms = [{**ARMS[0], "title": "again", "name": "again"}, *ARMS]
    with pytest.raises(ConfigError, match=r"study\.arms.*'again', 'vmoe'.*the same configuration"):
        read(tmp_path, arms=arms)


def views(config):
    return 2 if "two_views" in config.dataset.train.process else 1


def test_both_baselines_of_fashion_mnist_see_the_batches_of_prc(tmp_path):
    runs = read_study("configs/studies/fashion_mnist.py:seeds=1", tmp_path).runs
    configs = {run.arm: run.config for run in runs}
    pairs, prc, one = (configs[name] for name in ("vmoe_pairs_k1", "prc_k1", "vmoe_k1"))
    assert pairs.dataset.train.to_dict() == prc.dataset.train.to_dict()
    assert pairs.consistency is None and prc.consistency is not None
    assert pairs.auxiliary_loss.to_dict() == one.auxiliary_loss.to_dict()
    [crop] = re.findall(r"inception_crop\(\d+, (\d+, \d+)\)", one.dataset.train.process)
    crops = re.findall(r"two_views\(\d+, \((.*?)\), \((.*?)\)\)", prc.dataset.train.process)
    assert crops == [(crop, crop)]


@pytest.mark.slow
def test_a_study_survives_a_failure_and_tries_again(tmp_path, digits_dir):
    source = write_study(
        tmp_path,
        seeds=(3,),
        overrides={
            **SMALL,
            "dataset": {s: {"data_dir": digits_dir} for s in ("train", "test", "test_pairs")},
        },
        robustness={
            "examples": "test[:32]",
            "perturbations": {"gaussian_noise": (0.0, 0.2)},
        },
    )
    study = read_study(source, tmp_path / "work")
    # A file where a directory must be: this run cannot write its checkpoints.
    blocked = study.runs[1].workdir / "checkpoints"
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    first = command(source, study)
    assert first.returncode == 1, first.stderr
    assert "failed: prc/seed=3" in first.stderr and "tries them again" in first.stderr
    assert [study.state(run) for run in study.runs] == ["done", "failed"]
    assert "exit status" in (blocked.parent / "failure.txt").read_text()

    before = os.stat(study.runs[0].workdir / "summary.txt").st_mtime_ns
    blocked.unlink()
    second = command(source, study)
    assert second.returncode == 0, second.stderr
    assert "2 runs, 1 of them done" in second.stdout and "[1/1 prc/seed=3]" in second.stdout
    assert os.stat(study.runs[0].workdir / "summary.txt").st_mtime_ns == before
    assert all(study.state(run) == "done" for run in study.runs)

    curves = pd.read_csv(study.workdir / "robustness.csv")
    clean = curves[curves["level"] == 0]
    assert len(curves) == 2 * 2 * 2  # runs, levels, one block and all
    assert (clean["changed"] == 0).all()
    assert os.path.getsize(study.workdir / "robustness.png") > 1000
    runs = pd.read_csv(study.workdir / "runs.csv")
    assert list(zip(runs["arm"], runs["seed"], strict=True)) == [("vmoe", 3), ("prc", 3)]


def command(source, study):
    return subprocess.run(
        [
            *(sys.executable, "-m", "vmoe_prc.study", f"--study={source}"),
            f"--workdir={study.workdir}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")},
    )
