"""The life of a run on a Cloud TPU pod, with workers that are directories of this machine."""

import json
import shlex
import sys
import time

import pytest
from stand_ins import ROOT, shown

NAME = ["--name=prc-k2", "--zone=us-central2-b"]
CREATE = ["--accelerator_type=v4-16", "--spot", "--poll_seconds=1"]
RUN = [
    *("--config=configs/imagenet_prc.py:k=2", "--workdir=gs://bucket/prc-k2's"),
    "--data_dir=gs://bucket/tfds",
]
# What a careless shell would split, expand or run.
OVERRIDES = [
    "--config.model.encoder.moe.layers=(3, 5)",
    '--config.description=it\'s "$HOME"; touch here && `touch here` \\ * é',
    "--config.mixup=",
]

GCLOUD = """
import shutil, subprocess
words = sys.argv[1:]
states = folder / "states"
if os.environ.get("FAIL_AT") in words:
    sys.exit(3)
if "list" in words:
    state, *others = states.read_text().split() or [""]
    states.write_text(" ".join(others or [state]))
    assert "--filter=name~/prc-k2$" in words
    print(state)
wanted = next((w[9:] for w in words if w.startswith("--worker=")), "all")
workers = [w for w in sorted(folder.parent.glob("worker*")) if wanted in ("all", w.name[6:])]
if "scp" in words:
    for worker in workers:
        shutil.copy(words[words.index("scp") + 1], worker)
if "ssh" in words:
    command = next(w[10:] for w in words if w.startswith("--command="))
    for worker in workers:
        env = dict(os.environ, HOME=str(worker))
        subprocess.run(["bash", "-c", command], cwd=worker, env=env, check=True)
"""
GIT = f"""
import tarfile
output = next(w[9:] for w in sys.argv if w.startswith("--output="))
with tarfile.open(output, "w:gz") as tar:
    for name in ("launch", "configs", "requirements.txt"):
        tar.add(pathlib.Path({str(ROOT)!r}) / name, name)
"""
# Stands for `python3 -m uv venv`, and makes the Python of the environment.
PYTHON3 = """
if sys.argv[1:4] == ["-m", "uv", "venv"]:
    python = pathlib.Path(sys.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text((folder / "program").read_text())
    python.chmod(0o755)
"""
TRAINING = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
told = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "data_dir": os.environ["TFDS_DATA_DIR"]}}
(pathlib.Path.home() / "telling").write_text(json.dumps(told))
(pathlib.Path.home() / "telling").rename(pathlib.Path.home() / "told")
print("training", flush=True)
while not pathlib.Path.home().joinpath("end").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def pod(stand_ins, tmp_path):
    for name in ("worker0", "worker1"):
        (tmp_path / name).mkdir()
    for name, behaviour in {"gcloud": GCLOUD, "git": GIT, "python3": PYTHON3}.items():
        stand_ins.program(name, behaviour)
    (stand_ins.folder / "program").write_text(TRAINING)
    stand_ins.states = lambda *states: (stand_ins.folder / "states").write_text(" ".join(states))
    stand_ins.states("ACTIVE")
    stand_ins.workers = [tmp_path / "worker0", tmp_path / "worker1"]
    yield stand_ins
    for worker in stand_ins.workers:
        (worker / "end").touch()


STEPS = ("create", "list", "delete", "archive", "scp", "ssh")


def actions(pod):
    return [next(w for w in words if w in STEPS) for words in pod.commands]


def told(worker, timeout=20):
    deadline = time.monotonic() + timeout
    while not (worker / "told").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return json.loads((worker / "told").read_text())


def test_the_life_of_a_run(pod):
    pod.states("ACCEPTED", "PROVISIONING", "ACTIVE")
    created = pod.run("tpu_pod.sh", "create", *NAME, *CREATE)
    assert created.returncode == 0, created.stderr
    assert "prc-k2 is PROVISIONING" in created.stderr
    assert pod.run("tpu_pod.sh", "install", *NAME).returncode == 0
    started = pod.run("tpu_pod.sh", "start", *NAME, *RUN, "--", *OVERRIDES)
    assert started.returncode == 0, started.stderr
    for worker in pod.workers:
        program = told(worker)
        flags = ["--config=configs/imagenet_prc.py:k=2", "--workdir=gs://bucket/prc-k2's"]
        assert program["argv"] == ["-m", "vmoe_prc.main", *flags, *OVERRIDES]
        assert program["cwd"] == str(worker / "vmoe_prc/prc-k2/source")
        assert program["data_dir"] == "gs://bucket/tfds"
        assert sorted(p.name for p in worker.iterdir()) == ["prc-k2.tar.gz", "told", "vmoe_prc"]
        assert (worker / "vmoe_prc/prc-k2/log.txt").read_text() == "training\n"
    status = pod.run("tpu_pod.sh", "status", *NAME)
    assert status.stdout.count(": running") == 2 and "ACTIVE" in status.stderr
    again = pod.run("tpu_pod.sh", "start", *NAME, *RUN)
    assert again.returncode != 0 and "runs; stop it first" in again.stderr
    assert pod.run("tpu_pod.sh", "install", *NAME).returncode != 0
    assert (pod.workers[0] / "vmoe_prc/prc-k2/source/configs").exists()
    assert pod.run("tpu_pod.sh", "resume", *NAME, *CREATE, *RUN).returncode == 0
    stopped = pod.run("tpu_pod.sh", "stop", *NAME)
    assert stopped.stdout.count("ended with exit status 75") == 2
    assert pod.run("tpu_pod.sh", "delete", *NAME).returncode == 0


def test_what_is_asked_of_gcloud(pod):
    pod.run("tpu_pod.sh", "create", *NAME, *CREATE, "--project=my-project")
    create, listed = pod.commands
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "prc-k2"),
        *("--zone=us-central2-b", "--project=my-project", "--node-id=prc-k2"),
        *("--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"),
    ]
    assert listed[4:] == [
        *("list", "--zone=us-central2-b", "--project=my-project"),
        *("--filter=name~/prc-k2$", "--format=value(state.state)"),
    ]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["SUSPENDED", "ACTIVE"], "list delete create list archive scp ssh ssh"),
        (["FAILED", "ACTIVE"], "list delete create list archive scp ssh ssh"),
        (
            ["SUSPENDING", "SUSPENDED", "ACTIVE"],
            "list list delete create list archive scp ssh ssh",
        ),
        (["PROVISIONING", "ACTIVE"], "list list archive scp ssh ssh"),
    ],
)
def test_resume_after_a_preemption(pod, states, expected):
    pod.states(*states)
    result = pod.run("tpu_pod.sh", "resume", *NAME, *CREATE, *RUN, "--", *OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert actions(pod) == expected.split()
    assert all(told(worker)["argv"][-3:] == OVERRIDES for worker in pod.workers)


def test_resume_starts_what_has_ended_on_a_pod_that_is_there(pod):
    pod.run("tpu_pod.sh", "install", *NAME)
    pod.run("tpu_pod.sh", "start", *NAME, *RUN)
    pod.run("tpu_pod.sh", "stop", *NAME)
    assert pod.run("tpu_pod.sh", "resume", *NAME, *CREATE, *RUN).stdout.count("started") == 2
    assert pod.run("tpu_pod.sh", "status", *NAME).stdout.count("running") == 2


def test_the_dry_run_shows_what_the_real_run_calls(pod):
    arguments = ["resume", *NAME, *CREATE, *RUN]
    dry = pod.run("tpu_pod.sh", *arguments, "--dry_run", "--", *OVERRIDES)
    assert pod.calls == []
    pod.states("SUSPENDED", "ACTIVE")
    pod.run("tpu_pod.sh", *arguments, "--", *OVERRIDES)
    assert shown(dry) == pod.commands


@pytest.mark.parametrize(
    "action", ["create", "install", "start", "logs", "status", "stop", "delete"]
)
def test_every_action_has_a_dry_run(pod, action):
    dry = pod.run("tpu_pod.sh", action, *NAME, *CREATE, *RUN, "--dry_run")
    assert shown(dry) and pod.calls == []
    assert all("prc-k2" in " ".join(words) for words in shown(dry))


def test_the_log_of_a_worker(pod):
    dry = pod.run("tpu_pod.sh", "logs", *NAME, "--worker=1", "--dry_run")
    (words,) = shown(dry)
    assert "--worker=1" in words
    remote = shlex.split(words[-1].removeprefix("--command="))
    assert remote[-2:] == ["logs", "vmoe_prc/prc-k2"]


def test_a_vm_that_runs_already_needs_no_queued_resource(pod):
    pod.states("")
    assert pod.run("tpu_pod.sh", "install", *NAME).returncode == 0
    assert pod.run("tpu_pod.sh", "start", *NAME, *RUN).returncode == 0
    assert pod.run("tpu_pod.sh", "status", *NAME).stdout.count("running") == 2
    assert pod.run("tpu_pod.sh", "resume", *NAME, *CREATE, *RUN).returncode == 0
    assert actions(pod) == ["archive", "scp", "ssh", "ssh", "list", "ssh", "list", "ssh"]


def test_the_status_of_a_pod_that_is_gone(pod):
    pod.states("SUSPENDED")
    status = pod.run("tpu_pod.sh", "status", *NAME)
    assert status.returncode == 0 and "prc-k2 is SUSPENDED" in status.stderr
    assert actions(pod) == ["list"]


@pytest.mark.parametrize("step", ["create", "list", "scp", "ssh"])
def test_stops_where_gcloud_fails(pod, step):
    pod.states("SUSPENDED", "ACTIVE")
    result = pod.run("tpu_pod.sh", "resume", *NAME, *CREATE, *RUN, env={"FAIL_AT": step})
    assert result.returncode == 3
    assert actions(pod)[-1] == step


def test_a_resource_that_fails_while_we_wait(pod):
    pod.states("PROVISIONING", "FAILED")
    result = pod.run("tpu_pod.sh", "create", *NAME, *CREATE)
    assert result.returncode == 1
    assert "prc-k2 is FAILED; try resume" in result.stderr


def test_a_program_that_was_killed(pod):
    pod.run("tpu_pod.sh", "install", *NAME)
    for worker in pod.workers:
        # As a reboot leaves it: a number that nobody, or another program, has.
        (worker / "vmoe_prc/prc-k2/pid").write_text("1 1\n")
    assert pod.run("tpu_pod.sh", "status", *NAME).stdout.count("was killed") == 2
    assert pod.run("tpu_pod.sh", "start", *NAME, *RUN).returncode == 0


def test_a_program_that_cannot_start(pod):
    (pod.folder / "python3.py").write_text("")  # which makes no environment
    pod.run("tpu_pod.sh", "install", *NAME)
    pod.run("tpu_pod.sh", "start", *NAME, *RUN, "--data_dir=")
    deadline = time.monotonic() + 20
    while "running" in (status := pod.run("tpu_pod.sh", "status", *NAME).stdout):
        assert time.monotonic() < deadline
    assert status.count("ended with exit status 127") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", *NAME], "--accelerator_type = '': expected such as v4-32"),
        (["create", *NAME, "--accelerator_type=v4-16;ls"], "--accelerator_type"),
        (["start", *NAME, "--config=configs/imagenet_prc.py"], "--workdir = '': expected gs://"),
        (["start", *NAME, *RUN, "--workdir=/tmp/x"], "expected gs://"),
        (["start", *NAME, *RUN, "--workdir=gs://bucket/a b"], "expected gs://"),
        (["start", "--name=x", *RUN], "--zone = '': expected such as us-central2-b"),
        (["stop", *NAME, "--worker=1;ls"], "--worker"),
    ],
)
def test_what_is_refused(pod, arguments, message):
    pod.refuses(message, "tpu_pod.sh", *arguments)
