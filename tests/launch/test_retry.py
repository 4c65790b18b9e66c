"""Attempts of a program: which statuses end them, and signals."""

import pathlib
import signal
import subprocess
import time

import pytest

from vmoe_prc.errors import PREEMPTED_STATUS

RETRY = pathlib.Path(__file__).parents[2] / "launch" / "retry.sh"


def program(folder, statuses):
    """A program that ends with these statuses, one an attempt."""
    path = folder / "program"
    path.write_text(
        f"""#!/usr/bin/env bash
echo attempt >> {folder}/attempts
statuses=({" ".join(map(str, statuses))})
exit ${{statuses[$(wc -l < {folder}/attempts) - 1]}}
"""
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("statuses", "expected", "attempts"),
    [
        ([0], 0, 1),
        ([2], 2, 1),
        ([PREEMPTED_STATUS], PREEMPTED_STATUS, 1),
        # A task under srun.
        ([254], 2, 1),
        ([1, 134, 0], 0, 3),
        ([137, 2], 2, 2),
        ([1, 1, 1, 134, 0], 134, 4),
    ],
)
def test_statuses(tmp_path, statuses, expected, attempts):
    result = subprocess.run(
        [RETRY, program(tmp_path, statuses)],
        env={"PATH": "/usr/bin:/bin", "RETRY_SECONDS": "0", "MAX_FAILURES": "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == expected
    assert (tmp_path / "attempts").read_text().count("attempt") == attempts
    assert result.stderr.count("the next attempt is in 0 s") == attempts - 1


@pytest.mark.slow
def test_pauses_grow(tmp_path):
    command = [RETRY, program(tmp_path, [1, 1, 1, 0])]
    result = subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "RETRY_SECONDS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert [line.split()[-2] for line in result.stderr.splitlines()] == ["1", "2", "4"]


@pytest.mark.parametrize("status", [PREEMPTED_STATUS, 1])
def test_a_signal_reaches_the_program_once_and_nothing_is_tried_again(tmp_path, status):
    path = tmp_path / "program"
    path.write_text(
        f"""#!/usr/bin/env bash
trap 'echo signal >> {tmp_path}/signals; sleep 0.5; exit {status}' TERM
touch {tmp_path}/started
while :; do sleep 0.05; done
"""
    )
    path.chmod(0o755)
    process = subprocess.Popen([RETRY, path], env={"PATH": "/usr/bin:/bin", "RETRY_SECONDS": "0"})
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == status
    assert (tmp_path / "signals").read_text() == "signal\n"


def test_a_signal_ends_a_pause(tmp_path):
    process = subprocess.Popen(
        [RETRY, program(tmp_path, [1, 0])],
        env={"PATH": "/usr/bin:/bin", "RETRY_SECONDS": "600"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "the next attempt is in 600 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 1
