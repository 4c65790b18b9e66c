"""Manifests of runs on Kubernetes."""

import json
import pathlib
import subprocess
import sys

import pytest

from vmoe_prc.errors import PREEMPTED_STATUS

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "jobset.py"
OPTIONS = {"--name": "prc-k2", "--image": "images/vmoe_prc:1", "--hosts": "4", "--chips": "8"}
TPU = {"--accelerator": "tpu-v5-lite-podslice", "--topology": "4x4"}


def render(kind, options, flags=(), env=()):
    words = [kind, *(f"{name}={value}" for name, value in options.items())]
    words += [f"--env={variable}" for variable in env]
    return subprocess.run(
        [sys.executable, SCRIPT, *words, "--", *flags], capture_output=True, text=True, check=False
    )


def rendered(*arguments, **keywords):
    result = render(*arguments, **keywords)
    assert result.returncode == 0, result.stderr
    tree = json.loads(result.stdout)
    [workers] = tree["spec"]["replicatedJobs"]
    [container] = workers["template"]["spec"]["template"]["spec"]["containers"]
    return tree, workers, container


def test_slices_of_tpus():
    flags = ["--config=a.py:k=2", '--config.description=it\'s; "$(HOME)"\nnull', "on", "1e3"]
    env = ["LIBTPU_INIT_ARGS=--a=b --c=$(d)"]
    tree, workers, container = rendered("tpu", OPTIONS | TPU | {"--slices": "2"}, flags, env)
    assert tree["metadata"]["name"] == "prc-k2"
    job = workers["template"]["spec"]
    assert (workers["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
    assert container["image"] == "images/vmoe_prc:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 8}}
    # Kubernetes turns $$( into $(, and leaves the rest as it is.
    arguments = [word.replace("$$(", "$(") for word in container["args"]]
    assert arguments == ["--num_processes=8", *flags]
    assert container["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": "--a=b --c=$$(d)"}]


def test_nodes_of_gpus_know_where_process_zero_is():
    _, workers, container = rendered("gpu", OPTIONS, ["--config=a.py"])
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["args"] == [
        f"--coordinator_address=$(JOBSET)-{workers['name']}-0-0.$(JOBSET):8476",
        "--process_id=$(JOB_COMPLETION_INDEX)",
        "--num_processes=4",
        "--config=a.py",
    ]
    assert [variable["name"] for variable in container["env"]] == ["JOBSET"]


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_statuses_have_their_rules(kind):
    tree, workers, container = rendered(kind, OPTIONS | TPU, ["--config=a.py"])
    policy = workers["template"]["spec"]["podFailurePolicy"]["rules"]
    codes = [rule["onExitCodes"]["values"] for rule in policy if "onExitCodes" in rule]
    assert codes == [[2], [PREEMPTED_STATUS]]
    actions = {
        pattern: rule["action"]
        for rule in tree["spec"]["failurePolicy"]["rules"]
        for pattern in rule["onJobFailureMessagePatterns"]
    }
    assert actions == {
        "exit code 2 matching": "FailJobSet",
        f"exit code {PREEMPTED_STATUS} matching": "RestartJobSetAndIgnoreMaxRestarts",
        "condition DisruptionTarget matching": "RestartJobSetAndIgnoreMaxRestarts",
    }
    assert 0 < tree["spec"]["failurePolicy"]["maxRestarts"] < 10
    assert container["command"][0] == "launch/retry.sh"


def test_a_run_of_a_study_has_several_processes():
    flags = ["--study=a.py", "--only=3"]
    _, _, container = rendered("gpu", OPTIONS | {"--program": "study"}, flags)
    assert container["command"][-3:] == ["python", "-m", "vmoe_prc.study"]
    assert container["args"][-3:] == ["--num_processes=4", *flags]


@pytest.mark.parametrize("name", ["null", "on", "no"])
def test_names_stay_strings(name):
    tree, _, _ = rendered("gpu", OPTIONS | {"--name": name}, ["--config=a.py"])
    assert tree["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--name", name) for name in ["123", "a b", "a;b", "$(a)", "a\nb", "A", "a" * 41, ""]),
        ("--image", "a image"),
        ("--hosts", "0"),
        ("--chips", "four"),
        ("--topology", "4"),
        ("--env", "1A=b"),
        ("--nam", "prc"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(option, value):
    result = render("tpu", OPTIONS | TPU | {option: value}, ["--config=a.py"])
    assert result.returncode == 2
    assert option in result.stderr and result.stdout == ""
