"""Programs of several processes on this machine, which meet as processes of several hosts do."""

import os
import pathlib
import socket
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent
TOTAL_DEVICES = 8


def start_processes(count, arguments, module="vmoe_prc.main"):
    """Starts a program in `count` processes that share eight virtual devices.

    Args:
      count: Number of processes.
      arguments: Arguments of the program, those without a dash first.
      module: The program.
    """
    flags_begin = sum(not argument.startswith("--") for argument in arguments)
    command, options = arguments[:flags_begin], arguments[flags_begin:]
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
                module,
                *command,
                f"--coordinator_address={address}",
                f"--num_processes={count}",
                f"--process_id={i}",
                *options,
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
