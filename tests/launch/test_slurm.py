"""Jobs under Slurm, from the submission to the tasks."""

import pytest
from stand_ins import ROOT, shown

from vmoe_prc.errors import PREEMPTED_STATUS

RUN = ["--name=prc-k2", "--config=configs/imagenet_prc.py:k=2", "--workdir=/shared/runs/prc k2"]
OVERRIDES = ["--config.model.encoder.moe.layers=(3, 5)", "--config.description=it's; $HOME"]
TRAIN = [
    *("python", "-m", "vmoe_prc.main", "--config=configs/imagenet_prc.py:k=2"),
    *("--workdir=/shared/runs/prc k2", *OVERRIDES),
]


def test_the_job_that_is_submitted(stand_ins):
    limits = ["--nodes=2", "--gpus_per_node=4", "--time=1-00:00:00", "--partition=gpu"]
    result = stand_ins.run("slurm.sh", "submit", *RUN, *limits, "--", *OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert stand_ins.commands == [
        [
            *("sbatch", "--job-name=prc-k2", f"--chdir={ROOT}"),
            *(f"--output={stand_ins.folder / 'prc-k2.log'}", "--open-mode=append", "--nodes=2"),
            *("--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8"),
            *("--signal=TERM@300", "--requeue", "--time=1-00:00:00", "--partition=gpu"),
            *(f"{ROOT}/launch/slurm_job.sh", str(PREEMPTED_STATUS), *TRAIN),
        ]
    ]


def test_the_dry_run_shows_what_the_real_run_calls(stand_ins):
    dry = stand_ins.run("slurm.sh", "submit", *RUN, "--dry_run", "--", *OVERRIDES)
    assert stand_ins.calls == []
    stand_ins.run("slurm.sh", "submit", *RUN, "--", *OVERRIDES)
    assert shown(dry) == stand_ins.commands


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (PREEMPTED_STATUS, "RUNNING", True),
        # Its user has cancelled it.
        (PREEMPTED_STATUS, "COMPLETING", False),
    ],
)
def test_a_job_that_was_interrupted_is_queued_again(stand_ins, status, state, requeued):
    # Slurm runs the script with the words that sbatch was given.
    start = -len(TRAIN) - 2
    stand_ins.program("sbatch", f"os.execv(sys.argv[{start}], sys.argv[{start}:])")
    stand_ins.program("srun", f"sys.exit({status})")
    stand_ins.program("squeue", f"print({state!r})")
    job = {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "123"}
    result = stand_ins.run("slurm.sh", "submit", *RUN, "--", *OVERRIDES, env=job)
    assert result.returncode == status
    _, srun, *others = stand_ins.commands
    assert srun == ["srun", "--cpus-per-task=8", "--wait=120", *TRAIN]
    assert (["scontrol", "requeue", "123"] in others) == requeued


@pytest.mark.parametrize("action", ["logs", "status", "stop"])
def test_other_actions(stand_ins, action):
    expected = {
        "logs": ["tail", "-n", "100", "-F", str(stand_ins.folder / "prc-k2.log")],
        "status": ["squeue", "--me", "--name=prc-k2"],
        "stop": ["scancel", "--me", "--name=prc-k2"],
    }[action]
    assert shown(stand_ins.run("slurm.sh", action, "--name=prc-k2", "--dry_run")) == [expected]
    if action != "logs":
        stand_ins.run("slurm.sh", action, "--name=prc-k2")
        assert stand_ins.commands == [expected]


def test_stops_where_sbatch_fails(stand_ins):
    stand_ins.program("sbatch", "sys.exit(7)")
    assert stand_ins.run("slurm.sh", "submit", *RUN).returncode == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", *RUN, "--nodes=0"], "--nodes = '0': expected a positive number"),
        (["submit", *RUN, "--time=soon"], "--time = 'soon': expected HH:MM:SS"),
        (["submit", *RUN, "--partition=gpu --wrap=ls"], "--partition"),
        (["submit", *RUN, "--workdir=runs"], "expected an absolute path"),
        (["submit", *RUN, "--data_dir=tfds"], "expected an absolute path"),
    ],
)
def test_what_is_refused(stand_ins, arguments, message):
    stand_ins.refuses(message, "slurm.sh", *arguments)
