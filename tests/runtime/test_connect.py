"""The number of processes of a run is the expected one, or the run does not start."""

import jax
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime import processes

COUNTS = {
    "SLURM_NTASKS": "8",
    "OMPI_COMM_WORLD_SIZE": "2",
    "SKYPILOT_NUM_NODES": "4",
    "WORLD_SIZE": "2",
    "JOB_COMPLETION_INDEX": "0",
}


@pytest.fixture
def alone(monkeypatch):
    """JAX finds no other processes, as on Kubernetes without its package `kubernetes`."""

    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for variable in COUNTS:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(("variable", "value"), COUNTS.items())
def test_several_processes_that_do_not_find_each_other_do_not_train_alone(
    alone, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        processes.connect()
    # On purpose they may.
    processes.connect(num_processes=1)
    processes.connect("unknown-host:1", 1, 0)


def test_one_process_needs_no_flag(alone, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.connect()


def test_the_expected_number_is_checked(alone):
    with pytest.raises(ConfigError, match="--num_processes = 4: JAX has found 1"):
        processes.connect(num_processes=4)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("host:1", 2, None), "--coordinator_address, --num_processes and --process_id"),
        (("host:1", None, 0), "--coordinator_address, --num_processes and --process_id"),
        ((None, 2, 0), "--coordinator_address, --num_processes and --process_id"),
        (("host", 2, 0), "--coordinator_address"),
        (("host:port", 2, 0), "--coordinator_address"),
        (("host:70000", 2, 0), "--coordinator_address"),
        (("host:1", 2, 2), "--process_id"),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, field):
    with pytest.raises(ConfigError) as error:
        processes.connect(*arguments)
    assert error.value.field == field
