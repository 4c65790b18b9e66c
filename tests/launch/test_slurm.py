"""launch/slurm.sbatch under a real Slurm of several nodes, with a program that ends as it is told.

Needs Debian's packages slurmctld, slurmd, slurm-client and munge, and to be root.
"""

import os
import pathlib
import re
import subprocess
import time

import pytest
import slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_cluster.is_installed(), reason="Slurm is not installed"),
]
ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
STUDY_SCRIPT = ROOT / "launch" / "slurm_study.sbatch"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env


@pytest.fixture
def program(tmp_path, cluster):
    """A stand-in for `python` that runs the text of a test; returns how to submit a job."""
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / "python"

    def submit(text, *arguments, script=SCRIPT, options=("--nodes=2",), cluster=cluster):
        path.write_text(
            f"""#!/usr/bin/env bash
folder={tmp_path}
printf '%s\\n' "$*" >> $folder/calls-$SLURM_PROCID
attempt=$(wc -l < $folder/calls-$SLURM_PROCID)
{text}
"""
        )
        path.chmod(0o755)
        env = {**cluster, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RETRY_SECONDS": "0"}
        env["MAX_FAILURES"] = "3"
        options = [*options, f"--output={tmp_path}/out", f"--chdir={ROOT}"]
        command = [
            "sbatch",
            "--parsable",
            "--job-name=null; $(false)",
            *options,
            script,
            *arguments,
        ]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    return submit


def calls(folder, index):
    return (folder / f"calls-{index}").read_text().splitlines()


def test_each_process_knows_its_place(cluster, program, tmp_path):
    job = program("exit 0", "--config=a b;$(ls)", "--x=*")
    assert slurm_cluster.wait_for(job, cluster, "COMPLETED")["ExitCode"] == "0:0"
    [first], [second] = calls(tmp_path, 0), calls(tmp_path, 1)
    address = f"node1:{10000 + int(job) % 20000}"
    for index, call in enumerate([first, second]):
        assert call == (
            f"-m vmoe_prc.main --process_id={index} --num_processes=2 "
            f"--coordinator_address={address} --config=a b;$(ls) --x=*"
        )


def test_a_wrong_configuration_is_final_whatever_the_others_do(cluster, program, tmp_path):
    job = program("[[ $SLURM_PROCID == 1 ]] && exit 2; exit 134")
    ended = slurm_cluster.wait_for(job, cluster, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert len(calls(tmp_path, 0)) == 1


@pytest.mark.parametrize("nodes", [1, 2])
def test_each_job_of_an_array_is_a_run_of_a_study(cluster, program, tmp_path, nodes):
    options = ["--array=0-1", f"--nodes={nodes}"]
    job = program("exit 0", "--study=a b", script=STUDY_SCRIPT, options=options)
    while subprocess.check_output(["squeue", "--noheader", f"--job={job}"], env=cluster):
        time.sleep(0.3)
    for index in range(nodes):
        made = [re.sub(r"=node\d:\d+", "=HOST:PORT", call) for call in calls(tmp_path, index)]
        assert sorted(made) == [
            f"-m vmoe_prc.study --process_id={index} --num_processes={nodes} "
            f"--coordinator_address=HOST:PORT --only={run} --study=a b"
            for run in range(2)
        ]


def test_a_task_that_is_killed_is_tried_again(cluster, program, tmp_path):
    job = program("[[ $SLURM_PROCID == 1 && $attempt == 1 ]] && kill -KILL $$; exit 0")
    assert slurm_cluster.wait_for(job, cluster, "COMPLETED")["Restarts"] == "0"
    assert len(calls(tmp_path, 1)) == 2


def queued_again(job, cluster):
    # Slurm starts it again after two minutes; that it waits in the queue is enough.
    waiting = slurm_cluster.wait_for(job, cluster, "PENDING", "REQUEUED")
    while waiting["JobState"] != "PENDING" or waiting["Restarts"] == "0":
        time.sleep(0.3)
        waiting = slurm_cluster.state(job, cluster)
    assert waiting["Restarts"] == "1"


@pytest.mark.parametrize("status", [75, 1])
def test_a_job_is_queued_again(cluster, program, tmp_path, status):
    job = program(f"exit {status}")
    queued_again(job, cluster)
    assert len(calls(tmp_path, 0)) == {75: 1, 1: 3}[status]
    subprocess.run(["scancel", job], env=cluster, check=True)


def test_only_the_run_of_an_array_that_was_interrupted_is_queued_again(cluster, program):
    # Slurm gives the last job of an array the number of the array.
    text = "[[ $* == *--only=1* ]] && exit 75; exit 0"
    job = program(text, script=STUDY_SCRIPT, options=["--array=0-1%1", "--nodes=1"])
    slurm_cluster.wait_for(f"{job}_0", cluster, "COMPLETED")
    queued_again(f"{job}_1", cluster)
    assert slurm_cluster.state(f"{job}_0", cluster)["JobState"] == "COMPLETED"
    subprocess.run(["scancel", job], env=cluster, check=True)


def test_stopping_by_hand_saves_first_and_is_final(cluster, program, tmp_path):
    job = program(
        "trap 'echo saved >> $folder/saved-$SLURM_PROCID; sleep 35; exit 75' TERM\n"
        "touch $folder/started-$SLURM_PROCID; while :; do sleep 0.2; done"
    )
    while not all((tmp_path / f"started-{i}").exists() for i in range(2)):
        time.sleep(0.3)
    stop = f"scontrol update JobId={job} Requeue=0; scancel --signal=TERM {job}"
    assert stop.replace(job, "JOB") in SCRIPT.read_text()
    subprocess.run(["bash", "-ec", stop], env=cluster, check=True)
    # Saving takes longer than KillWait, 30 s. Each process has the signal once.
    ended = slurm_cluster.wait_for(job, cluster, "FAILED", "COMPLETED", "CANCELLED", "TIMEOUT")
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "0")
    assert [(tmp_path / f"saved-{i}").read_text() for i in range(2)] == ["saved\n"] * 2


def test_a_job_whose_node_dies_runs_again_on_others(program, tmp_path):
    with slurm_cluster.slurm(tmp_path) as cluster:
        job = program(
            "[[ ${SLURM_RESTART_COUNT:-0} == 1 ]] && exit 0\n"
            "echo $SLURMD_NODENAME > $folder/started-$SLURM_PROCID\n"
            "while :; do sleep 0.2; done",
            cluster=cluster,
        )
        while not all((tmp_path / f"started-{i}").exists() for i in range(2)):
            time.sleep(0.3)
        lost = (tmp_path / "started-1").read_text().strip()
        slurm_cluster.lose_node(lost, cluster)
        slurm_cluster.wait_for(job, cluster, "PENDING")
        # Slurm lets it wait for two minutes.
        again = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(again, env=cluster, check=True)
        ended = slurm_cluster.wait_for(job, cluster, "COMPLETED")
    assert (ended["Restarts"], ended["NodeList"]) == ("1", "node[1,3]")
    # Slurm ended the attempt with the node: retry.sh has not tried it again there.
    assert [len(calls(tmp_path, i)) for i in range(2)] == [2, 2] and lost == "node2"
