"""Breaks runs of several processes in the ways of a cluster, and looks at how they end.

    python -m benchmarks.chaos --processes=2,4

Starts a small run of real processes on this machine for each case, breaks it after its first
checkpoint, and prints a table: what the processes do, how those that were left alone found out,
their exit statuses (negative: a signal), and the newest checkpoint, which must restore. Exit
status 1 if a case does not end as it should. Seconds, measured on a busy machine, go to
stderr. Cutting a network and filling a disk need root: they happen in network namespaces and on a
file system of their own.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import soak
from vmoe_prc.checkpoints.manager import restore_part
from vmoe_prc.errors import PREEMPTED_STATUS
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER

# JAX ends the others 150 s after the last heartbeat of a process. The limits are long, so that a
# busy machine does not fail a case.
LIMIT_SECONDS = 900
START_SECONDS = 1800
DISK_BYTES = 64 * 2**20


@dataclasses.dataclass
class Run:
    """Processes that train in `workdir`.

    Attributes:
      workdir: Their work directory.
      processes: The processes, in the order of their indices.
      networks: Names of their network namespaces; empty on the loopback interface.
    """

    workdir: pathlib.Path
    processes: list[subprocess.Popen]
    networks: list[str]

    def log(self, index: int) -> str:
        """Returns the output of a process."""
        return (self.workdir.parent / f"log{index}.txt").read_text(errors="replace")

    def step(self) -> int:
        """Returns the last step that process 0 has reported; 0 if none."""
        steps = re.findall(r"step ([\d,]+) of ", self.log(0))
        return int(steps[-1].replace(",", "")) if steps else 0

    def checkpoints(self) -> list[int]:
        """Returns the steps of the complete checkpoints."""
        folder = self.workdir / CHECKPOINT_FOLDER
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def running(self) -> list[int]:
        """Returns the indices of the processes that have not ended."""
        return [i for i, process in enumerate(self.processes) if process.poll() is None]

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until the condition holds, a process ends, or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.running()) == len(self.processes):
            if condition():
                return True
            time.sleep(0.2)
        return condition()


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to break a run.

    Attributes:
      break_run: Breaks a run that is training, and returns when it is broken for good or whole
        again.
      recovers: Whether the run continues; then SIGTERM ends it.
      statuses: Exit statuses of the processes that end as they should.
      place: Makes the place of the work directory and the networks.
    """

    break_run: Callable[[Run], None]
    recovers: bool
    statuses: tuple[int, ...]
    place: str = ""


def kill_last(run: Run) -> None:
    """Ends the last process as the kernel does when memory is short."""
    run.processes[-1].kill()


def kill_coordinator(run: Run) -> None:
    """Ends process 0, at which the others are registered."""
    run.processes[0].kill()


def stop_for_a_minute(run: Run) -> None:
    """Stops the last process, as a host that hangs."""
    run.processes[-1].send_signal(signal.SIGSTOP)
    time.sleep(60)
    run.processes[-1].send_signal(signal.SIGCONT)


def stop_for_good(run: Run) -> None:
    """Stops the last process until the others have ended; then kills it."""
    run.processes[-1].send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(run.running()) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    run.processes[-1].kill()


def slow_down(run: Run) -> None:
    """Lets the last process run for a tenth of the time, for half a minute."""
    for _ in range(30):
        run.processes[-1].send_signal(signal.SIGSTOP)
        time.sleep(0.9)
        run.processes[-1].send_signal(signal.SIGCONT)
        time.sleep(0.1)


def cut_network(run: Run) -> None:
    """Takes the network of the last process away."""
    _ip("-n", run.networks[-1], "link", "set", "eth0", "down")


def fill_disk(run: Run) -> None:
    """Fills the file system of the work directory."""
    with (run.workdir.parent / "ballast").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
            file.flush()


def limit_files(run: Run) -> None:
    """Lets no file of process 1 grow beyond 4 KB, as a full disk of its host does."""
    resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE, (4096, 4096))


_LOST = (-signal.SIGABRT, -signal.SIGKILL, 1)
CASES = {
    "one is killed (SIGKILL)": Case(kill_last, False, _LOST),
    "the coordinator is killed": Case(kill_coordinator, False, _LOST),
    "one hangs for a minute (SIGSTOP)": Case(stop_for_a_minute, True, (PREEMPTED_STATUS,)),
    "one hangs for good": Case(stop_for_good, False, _LOST),
    "one is 10 times slower": Case(slow_down, True, (PREEMPTED_STATUS,)),
    "the network of one is cut": Case(cut_network, False, _LOST, "network"),
    "the disk is full": Case(fill_disk, False, (-signal.SIGABRT, 1), "disk"),
    "the disk of one is full": Case(limit_files, False, (-signal.SIGABRT, 1)),
}
# What the others say when they end.
REASONS = {
    "a lost connection": r"[Cc]onnection (closed|reset|refused)|Broken pipe|Socket closed",
    "a missed heartbeat (150 s)": r"heartbeat",
    "an error in writing": r"No space left|File too large|cannot be written|cannot write",
    "the end of another": r"another process|other process",
}


def start(workdir: pathlib.Path, count: int, networks: list[str], missing: bool = False) -> Run:
    """Starts `count` processes, or all but the last."""
    data = pathlib.Path(tempfile.gettempdir()) / "vmoe_prc_chaos_data"
    port = _free_port()
    host = "10.77.0.1" if networks else "127.0.0.1"
    arguments = [
        f"--config={soak.__file__}:100000",
        f"--workdir={workdir}",
        *(f"--config.dataset.{split}.data_dir={data}" for split in ("train", "test")),
        "--config.num_expert_partitions=2",
        f"--coordinator_address={host}:{port}",
        f"--num_processes={count}",
        f"--initialization_timeout={10 if missing else START_SECONDS}",
    ]
    # The runs compile the same programs.
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(data / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    processes = []
    for index in range(count - missing):
        prefix = ["ip", "netns", "exec", networks[index]] if networks else []
        with (workdir.parent / f"log{index}.txt").open("w") as log:
            command = [*prefix, sys.executable, "-m", "vmoe_prc.main", *arguments]
            processes.append(
                subprocess.Popen(
                    [*command, f"--process_id={index}"],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                )
            )
    return Run(workdir, processes, networks)


def try_case(name: str, count: int) -> tuple[str, list[str]]:
    """Runs a case; returns its row of the table, and what did not end as it should."""
    case = CASES[name]
    faults = []
    with _place(case.place, count) as (folder, networks):
        run = start(folder / "run", count, networks)
        try:
            if not run.wait_for(lambda: run.step() > 5 and bool(run.checkpoints()), START_SECONDS):
                return f"| {name} | {count} | | | |", [f"did not start: {run.log(0)[-2000:]}"]
            began = time.monotonic()
            print(f"{name}, {count}: trains, and is broken", file=sys.stderr, flush=True)
            case.break_run(run)
            if case.recovers:
                step = run.step()
                if not run.wait_for(lambda: run.step() > step + 3, LIMIT_SECONDS):
                    faults.append(f"does not continue after step {step}")
                seconds = time.monotonic() - began
                run.processes[0].terminate()
            for process in run.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    left = LIMIT_SECONDS - (time.monotonic() - began) + 60 * case.recovers
                    process.wait(timeout=max(left, 1))
            if not case.recovers:
                seconds = time.monotonic() - began
            if run.running():
                faults.append(f"processes {run.running()} run for over {LIMIT_SECONDS} s")
        finally:
            for index in run.running():
                run.processes[index].kill()
        statuses = [process.wait() for process in run.processes]
        faults += [f"status {status}" for status in statuses if status not in case.statuses]
        (folder / "ballast").unlink(missing_ok=True)
        newest, fault = _restored(run)
        faults += fault
        reasons = _reasons(run, statuses)
        if faults:
            for i in range(count):
                print(f"process {i}:", *run.log(i).splitlines()[-40:], sep="\n", file=sys.stderr)
    print(f"{name}, {count}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if not case.recovers and not reasons:
        faults.append("nobody says why it ended")
    ends = "all continue" if case.recovers else f"all end: {' or '.join(reasons)}"
    return f"| {name} | {count} | {ends} | {_listed(statuses)} | step {newest} restores |", faults


def try_missing(count: int) -> tuple[str, list[str]]:
    """Starts all processes but the last; they must say so."""
    with _place("", count) as (folder, networks):
        run = start(folder / "run", count, networks, missing=True)
        statuses = [process.wait(timeout=LIMIT_SECONDS) for process in run.processes]
        line = f"process {count - 1} of {count} did not come within 10 s"
        logs = [run.log(index) for index in range(count - 1)]
        faults = [
            f"process {i} does not say: {line}" for i, log in enumerate(logs) if line not in log
        ]
        faults += [f"status {status}" for status in statuses if status != 1]
    ends = "all end after `--initialization_timeout` (10 s here), and name it"
    return f"| one does not start | {count} | {ends} | {_listed(statuses)} | |", faults


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", default="2,4", help="numbers of processes")
    parser.add_argument("--cases", default="", help="a regular expression; by default all")
    arguments = parser.parse_args(argv)
    chosen = [name for name in CASES if re.search(arguments.cases, name)]
    missing = re.search(arguments.cases, "one does not start")
    if os.geteuid():
        print("not root: the cases of network and disk are left out", file=sys.stderr)
        chosen = [name for name in chosen if not CASES[name].place]
    print("| what | processes | then | exit statuses | newest checkpoint |")
    print("| --- | --- | --- | --- | --- |")
    failed = False
    for count in map(int, arguments.processes.split(",")):
        trials = [lambda name=name, n=count: try_case(name, n) for name in chosen]
        for trial in [*trials, *([lambda n=count: try_missing(n)] if missing else [])]:
            row, faults = trial()
            print(row, *(f"FAULT: {fault}" for fault in faults), sep="\n", flush=True)
            failed |= bool(faults)
    return int(failed)


def _restored(run: Run) -> tuple[int | None, list[str]]:
    """Returns the step of the newest checkpoint, and why it cannot be used."""
    steps = run.checkpoints()
    if not steps:
        return None, ["no checkpoint"]
    params = restore_part(run.workdir / CHECKPOINT_FOLDER)
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    return steps[-1], [] if finite else ["the checkpoint is not finite"]


def _reasons(run: Run, statuses: list[int]) -> list[str]:
    """Returns why those that were not killed have ended, by their output."""
    left = [i for i, status in enumerate(statuses) if status != -signal.SIGKILL]
    logs = "\n".join(run.log(i) for i in left)
    return [name for name, pattern in REASONS.items() if re.search(pattern, logs)]


@contextlib.contextmanager
def _place(kind: str, count: int) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Makes a folder, and a small file system or networks where the case needs them."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        if kind == "disk":
            size = f"size={DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", name], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", name], check=True)
        networks = stack.enter_context(_networks(count)) if kind == "network" else []
        yield folder, networks


@contextlib.contextmanager
def _networks(count: int) -> Iterator[list[str]]:
    """Connects `count` network namespaces by a bridge, with addresses 10.77.0.1, ..."""
    names = [f"chaos{i}" for i in range(count)]
    hub = "chaos-hub"
    with contextlib.ExitStack() as stack:
        for name in [hub, *names]:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            peer = ["peer", "name", f"port{i}", "netns", hub]
            _ip("-n", name, "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", hub, "link", "set", f"port{i}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            # Each process finds its address by the name of the host.
            hosts = pathlib.Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n10.77.0.{i + 1} {socket.gethostname()}\n")
            stack.callback(hosts.parent.rmdir)
            stack.callback(hosts.unlink)
        yield names


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _listed(statuses: list[int]) -> str:
    return ", ".join(map(str, statuses))


if __name__ == "__main__":
    sys.exit(main())
