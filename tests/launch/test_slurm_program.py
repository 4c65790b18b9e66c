"""The program itself under a real Slurm of three nodes, which are processes of this machine."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
import slurm_cluster

ROOT = pathlib.Path(__file__).parents[2]
# The machine may be busy with other things.
START_SECONDS = 900
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_cluster.is_installed(), reason="Slurm is not installed"),
]
STUDY = """
import ml_collections

def get_config(arguments):
    return ml_collections.ConfigDict({
        "config": "benchmarks/soak.py", "seeds": (0,),
        "arms": (
            {"name": "short", "arguments": "6"}, {"name": "endless", "arguments": "1000000"},
        ),
    })
"""


@pytest.fixture
def cluster(tmp_path):
    with slurm_cluster.slurm(tmp_path) as env:
        yield {
            **env,
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.fspath(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        }


def submit(cluster, script, output, options, arguments):
    command = ["sbatch", "--parsable", f"--output={output}", f"--chdir={ROOT}", *options]
    command += [ROOT / "launch" / script, *arguments]
    return subprocess.run(
        command, env=cluster, capture_output=True, text=True, check=True
    ).stdout.strip()


def slurm(cluster, *command):
    subprocess.run(command, env=cluster, check=True)


def newest(workdir):
    """Step of the newest checkpoint; 0 if there is none."""
    return max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()), default=0)


def passes(workdir, step):
    """Waits for a checkpoint after a step."""
    deadline = time.monotonic() + START_SECONDS
    while newest(workdir) <= step:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def queued_again(job, cluster, restarts):
    """Waits until the job is queued again, and lets it start soon; Slurm itself waits two minutes.

    In the second in which a node has ended a job it refuses the next start of that job.
    """
    while True:
        state = slurm_cluster.wait_for(job, cluster, "PENDING", seconds=START_SECONDS)
        if state["Restarts"] == str(restarts):
            slurm(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now+5seconds")
            return
        time.sleep(0.5)


def is_preempted(job, cluster, workdir):
    """Lets another job take all nodes: SIGTERM, a checkpoint, status 75, and the queue.

    Returns:
      The step of the checkpoint.
    """
    options = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    slurm(cluster, "sbatch", *options, "--wrap=true")
    queued_again(job, cluster, 1)
    return newest(workdir)


def stop_by_hand(job, cluster, restarts):
    """Ends a job for good, as docs/CLUSTERS.md says; it has started anew so many times."""
    slurm(cluster, "scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm(cluster, "scancel", "--signal=TERM", job)
    ended = slurm_cluster.wait_for(job, cluster, "FAILED", seconds=START_SECONDS)
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", str(restarts))


def test_a_run_that_is_preempted_and_loses_a_node_resumes_each_time(cluster, tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "out"
    data = [f"--config.dataset.{s}.data_dir={tmp_path / 'data'}" for s in ("train", "test")]
    arguments = [f"--config={ROOT}/benchmarks/soak.py:1000000", f"--workdir={workdir}", *data]
    job = submit(cluster, "slurm.sbatch", output, ["--nodes=2"], arguments)
    passes(workdir, 10)

    preempted = is_preempted(job, cluster, workdir)
    passes(workdir, preempted)
    text = output.read_text()
    assert f"preempted: checkpoint saved at step {preempted};" in text
    assert f"resuming after step {preempted} of" in text

    # Slurm sees that the node is gone, and takes another one.
    slurm_cluster.lose_node("node2", cluster)
    queued_again(job, cluster, 2)
    lost = newest(workdir)
    passes(workdir, lost)
    assert slurm_cluster.state(job, cluster)["NodeList"] == "node[1,3]"

    stop_by_hand(job, cluster, restarts=2)


def test_a_wrong_configuration_is_final(cluster, tmp_path):
    arguments = [f"--config={ROOT}/benchmarks/soak.py:9", f"--workdir={tmp_path / 'run'}"]
    job = submit(
        cluster, "slurm.sbatch", tmp_path / "out", ["--nodes=2"], [*arguments, "--config.seeds=1"]
    )
    ended = slurm_cluster.wait_for(job, cluster, "FAILED", seconds=START_SECONDS)
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert "config.seeds" in (tmp_path / "out").read_text()


def test_a_study_is_an_array_of_runs_of_two_processes_one_of_them_preempted(cluster, tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    command = [f"--study={tmp_path / 'study.py'}", f"--workdir={tmp_path / 'study'}"]

    def study(*flags):
        words = [sys.executable, "-m", "vmoe_prc.study", *command, *flags]
        return subprocess.run(
            words, cwd=ROOT, env=cluster, capture_output=True, text=True, check=True
        ).stdout

    def states():
        return [run["state"] for run in json.loads(study("--dry_run", "--format=json"))]

    assert states() == ["new", "new"]
    options = ["--array=0-1%1", "--nodes=2"]
    array = submit(cluster, "slurm_study.sbatch", tmp_path / "out-%a", options, command)
    slurm_cluster.wait_for(f"{array}_0", cluster, "COMPLETED", seconds=START_SECONDS)
    assert states()[0] == "done"
    assert study("--collect").count("\n") > 3
    assert "1 of 2 runs" in (tmp_path / "study" / "tables.md").read_text()

    job, workdir = f"{array}_1", tmp_path / "study" / "runs" / "endless" / "seed=0"
    passes(workdir, 5)
    preempted = is_preempted(job, cluster, workdir)
    passes(workdir, preempted)
    text = (tmp_path / "out-1").read_text()
    # By both processes.
    assert text.count(f"preempted: checkpoint saved at step {preempted};") == 2
    assert f"resuming after step {preempted} of" in text
    # The runs that are done are not queued again.
    queue = ["squeue", "--noheader", "--format=%F_%K"]
    queued = subprocess.run(queue, env=cluster, capture_output=True, text=True, check=True).stdout
    assert queued.split() == [job]
    stop_by_hand(job, cluster, restarts=1)
