"""A process ends in time, even where it holds Python's lock."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.errors import PREEMPTED_STATUS, PreemptedError, RunError
from vmoe_prc.runtime import processes
from vmoe_prc.runtime.deadline import CLEANUP_SECONDS

TESTS = pathlib.Path(__file__).parents[1]


def ended(program):
    begin = "import ctypes, sys, time; from vmoe_prc.runtime.deadline import exit_after; "
    return subprocess.run(
        [sys.executable, "-c", begin + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the status is 1")
def test_a_process_that_holds_the_lock_ends_with_its_status():
    # A later deadline does not count.
    result = ended("exit_after(1, 75); exit_after(1, 1)(); ctypes.PyDLL(None).sleep(50)")
    assert result.returncode == PREEMPTED_STATUS
    assert "most recent call first" in result.stderr


def test_a_deadline_is_called_off():
    result = ended("exit_after(1, 75)(); exit_after(9, 75)(); time.sleep(2); sys.exit(3)")
    assert (result.returncode, result.stderr) == (3, "")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PreemptedError(1), PREEMPTED_STATUS),
        (RunError("the disk is full"), 1),
        (ConfigError("config.k", 0, "at least 1"), 2),
        (ZeroDivisionError(), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_gives_a_minute_to_clean_up(error, status, count, monkeypatch):
    events = []

    def exit_after(seconds, status):
        events.append((seconds, status))
        return lambda: events.append("called off")

    monkeypatch.setattr(processes, "exit_after", exit_after)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(type(error)), processes.end_in_time() as watched:
        try:
            with watched:
                raise error
        finally:
            assert events == [(CLEANUP_SECONDS, status)]
    # The others wait for one that has failed, but not for one that was preempted with them.
    fails_alone = count > 1 and status != PREEMPTED_STATUS
    assert events[1:] == ([] if fails_alone else ["called off"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the status is 1")
def test_sigterm_ends_a_run_whose_reader_hangs(digits_dir, tmp_path):
    command = [sys.executable, "-m", "hanging_reader", digits_dir, os.fspath(tmp_path / "run")]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(TESTS)},
    )
    assert result.returncode == PREEMPTED_STATUS, result.stderr
    assert "most recent call first" in result.stderr
    assert any(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())
