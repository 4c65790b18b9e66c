"""Programs of several processes on this machine, which meet as those of several hosts do."""

import os
import pathlib
import socket
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent
TOTAL_DEVICES = 8


def start_processes(count, arguments):
    """Starts `vmoe_prc.main` in `count` processes that share eight virtual devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace(
        f"device_count={TOTAL_DEVICES}", f"device_count={TOTAL_DEVICES // count}"
    )
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vmoe_prc.main",
                f"--coordinator_address={address}",
                f"--num_processes={count}",
                f"--process_id={i}",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.fspath(TESTS)},
        )
        for i in range(count)
    ]


def ended(processes, timeout=300):
    """Waits for processes; returns their exit statuses, outputs and errors."""
    texts = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], *zip(*texts, strict=True)
