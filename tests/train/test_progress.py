"""Step rates, and what a terminal and a log file show of them."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import jax.numpy as jnp
import pytest

from vmoe_prc.train.progress import StepTimer

PROGRAM = """
import time
from absl import app, logging
from vmoe_prc.runtime.logs import setup_logging
from vmoe_prc.train import progress

def main(_):
    setup_logging()
    setup_logging()
    with progress.progress(40, 10) as bar:
        for step in range(11, 41):
            time.sleep(0.005)
            bar.step(step)
            if step % 10 == 0:
                rates = {"step_seconds": 2.0, "views_per_second": 1234.5, "mfu": 0.125}
                bar.report(step, {"loss": 1 / step}, rates)
            if step == 25:
                logging.warning("a line in between")
    logging.info("a library's line")
    logging.warning("a library's warning")
    try:
        raise OSError("disk full")
    except OSError:
        logging.exception("a library's thread\\nfailed at length")

app.run(main)
"""


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_leave_out_compilation_and_pauses():
    clock = Clock()
    timer = StepTimer(64, flops_per_step=1e12, peak_flops=8e12, clock=clock)
    assert timer.report() == {}
    clock.now += 60  # compiles
    timer.step(jnp.zeros(3))
    assert timer.report() == {}
    for _ in range(4):
        clock.now += 0.5
        timer.step()
    with timer.paused(jnp.zeros(3)):
        clock.now += 30  # evaluates
    clock.now += 0.5
    timer.step()
    rates = timer.report(jnp.zeros(3))
    assert rates == {"step_seconds": 0.5, "views_per_second": 128.0, "mfu": 0.25}

    clock.now += 2
    timer.step()
    assert timer.report()["views_per_second"] == 32.0  # since the last report only


def test_a_pause_before_the_first_step_and_one_that_fails():
    clock = Clock()
    timer = StepTimer(10, clock=clock)
    with timer.paused():
        clock.now += 5
    timer.step()
    with pytest.raises(RuntimeError, match="evaluation"), timer.paused():
        clock.now += 7
        raise RuntimeError("evaluation")
    clock.now += 2
    timer.step()
    assert timer.report() == {"step_seconds": 2.0, "views_per_second": 5.0}


@pytest.mark.parametrize("known", [{"flops_per_step": 1e9}, {"peak_flops": 1e12}, {}])
def test_no_mfu_without_a_peak(known):
    clock = Clock()
    timer = StepTimer(10, clock=clock, **known)
    timer.step()
    clock.now += 1
    timer.step()
    assert "mfu" not in timer.report()


def test_log_lines_elsewhere():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    # The time and, of others, the origin.
    pattern = r"^\d\d:\d\d:\d\d (?:(?:warning|error): \S+: )?(.*)$"
    lines = re.findall(pattern, run.stderr, re.MULTILINE)
    assert lines == [
        "step 20 of 40 (50.0%), loss 0.05, 1,234 views/s, MFU 12.5%, ETA 00:40",
        "a line in between",
        "step 30 of 40 (75.0%), loss 0.03333, 1,234 views/s, MFU 12.5%, ETA 00:20",
        "step 40 of 40 (100.0%), loss 0.025, 1,234 views/s, MFU 12.5%, ETA 00:00",
        "a library's warning",
        "a library's thread",
    ]
    assert "Traceback" not in run.stderr and "at length" not in run.stderr


@pytest.mark.parametrize(("lines", "columns"), [(24, 120), (0, 0)])
def test_a_bar_on_a_terminal(lines, columns):
    terminal, device = pty.openpty()
    ioctl(device, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=device)
    os.close(device)
    shown = b""
    while True:
        try:
            shown += (chunk := os.read(terminal, 4096))
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
    os.close(terminal)
    assert process.wait() == 0
    pieces = re.split(r"[\r\n]+", shown.decode())
    assert sum("a line in between" in piece for piece in pieces) == 1
    assert sum("a library's warning" in piece for piece in pieces) == 1
    last = [piece for piece in pieces if "%|" in piece][-1]
    assert re.search(r"100%\|█+\| 40/40 \[00:0\d, loss 0.025, 1,234 views/s", last)
    # Each line is separate, not at the end of a bar.
    assert all("%|" not in piece for piece in pieces if "a line" in piece)
