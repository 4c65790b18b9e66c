"""A work directory belongs to one run at a time."""

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath

from vmoe_prc.config import ConfigError
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.processes import is_main_process, raise_everywhere

LOCK_FILE = ".lock"

# Raises RunError if the directory at the path is no longer the one that is locked.
CheckHeld = Callable[[], None]


@contextlib.contextmanager
def lock_workdir(workdir: epath.Path) -> Iterator[CheckHeld]:
    """Holds the work directory for all processes of this run: process 0 locks it.

    Args:
      workdir: Directory of the run.

    Yields:
      A function that all processes call together before they write what another run must not
      find among its files. It raises `RunError` if the directory was removed or renamed.

    Raises:
      ConfigError: If another run holds it, it cannot be written, or it is not the same
        directory for all processes.
    """
    check_held: CheckHeld = _held_elsewhere

    def check() -> None:
        with raise_everywhere():
            check_held()

    with contextlib.ExitStack() as stack:
        with raise_everywhere():
            if is_main_process():
                check_held = stack.enter_context(lock(workdir))
        with raise_everywhere():
            if not (workdir / LOCK_FILE).exists():
                expected = f"process {jax.process_index()} does not see the files of process 0"
                raise ConfigError("--workdir", str(workdir), expected)
        yield check


def _held_elsewhere() -> None:
    """Leaves the check to process 0."""


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[CheckHeld]:
    """Holds the work directory for this process; it is made if missing.

    Args:
      workdir: Directory of the run, on a file system or in an object store such as `gs://`.

    Raises:
      ConfigError: If another run holds it, or it cannot be written.
    """
    path = workdir / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            remote = "://" in os.fspath(workdir)
            check = stack.enter_context(renewed_lock(path) if remote else kernel_lock(path))
        except OSError as error:
            raise ConfigError("--workdir", str(workdir), f"cannot be written: {error}") from None
        yield check


@contextlib.contextmanager
def kernel_lock(path: epath.Path) -> Iterator[CheckHeld]:
    """Locks a file by the kernel, which frees it when the process ends, however it does.

    Raises:
      ConfigError: If another process holds it.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _in_use(path, file.read()) from None
        file.truncate(0)
        file.write(_owner())
        file.flush()

        def check() -> None:
            try:
                held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                held = False
            if not held:
                raise RunError(f"{path.parent}: was removed or renamed while this run was in it")

        # The file stays: who removed it might remove another run's.
        yield check


@contextlib.contextmanager
def renewed_lock(path: epath.Path, renew_seconds: float = 10.0) -> Iterator[CheckHeld]:
    """Holds a lease: a file that is rewritten regularly, where the file system has no locks.

    A file that is no longer rewritten was left behind by a run that was killed, and is taken
    over after a wait.

    Args:
      path: The file.
      renew_seconds: How often it is written.

    Raises:
      ConfigError: If another process renews it.
    """
    _wait_until_abandoned(path, renew_seconds)
    name, stopped = f"{_owner()} {uuid.uuid4()}", threading.Event()
    path.write_text(name)
    # If two processes start at the same time, the one that wrote last holds the lease.
    time.sleep(renew_seconds / 2)
    if not (now := _read(path)).startswith(name):
        raise _in_use(path, now)

    def renew():
        count = 0
        while not stopped.wait(renew_seconds):
            count += 1
            try:
                path.write_text(f"{name} {count}")
            except OSError as error:
                logging.warning("%s cannot be renewed: %s", path, error)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()

    def check() -> None:
        """Finds nothing: directories of object stores are names, and the lease is written again."""

    try:
        yield check
    finally:
        stopped.set()
        thread.join()
        path.unlink(missing_ok=True)


def _wait_until_abandoned(path: epath.Path, renew_seconds: float) -> None:
    if not path.exists():
        return
    before, deadline = _read(path), time.monotonic() + 3 * renew_seconds
    logging.info("%s exists; waiting to see whether its run is alive", path)
    while time.monotonic() < deadline:
        time.sleep(renew_seconds / 4)
        if not path.exists():
            return
        if (now := _read(path)) != before:
            raise _in_use(path, now)


def _read(path: epath.Path) -> str:
    # While it is rewritten, a local file is empty for a moment.
    for _ in range(100):
        if text := path.read_text():
            return text
        time.sleep(0.01)
    return ""


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: epath.Path, owner: str) -> ConfigError:
    words = " ".join(owner.split()[:4])
    return ConfigError("--workdir", str(path.parent), f"is in use by another run ({words})")
