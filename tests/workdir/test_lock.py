"""One run a work directory, whatever became of the one before."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from vmoe_prc.config import ConfigError
from vmoe_prc.errors import RunError
from vmoe_prc.workdir.lock import LOCK_FILE, lock, lock_workdir, renewed_lock

HOLDER = """
import sys, time
from etils import epath
from vmoe_prc.workdir import lock
with getattr(lock, sys.argv[1])(epath.Path(sys.argv[2]), **eval(sys.argv[3])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process(name, path, **options):
    """Holds a lock in another process, which is killed at the end."""
    command = [sys.executable, "-c", HOLDER, name, str(path), repr(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_second_is_refused_and_told_who_holds_it(tmp_path):
    workdir = epath.Path(tmp_path / "new" / "run")
    with another_process("lock", workdir) as process:
        with pytest.raises(ConfigError) as error, lock_workdir(workdir):
            pass
        assert f"is in use by another run (process {process.pid} on" in str(error.value)
    # SIGKILL leaves the file, but not the lock; and it can be taken again and again.
    assert (workdir / LOCK_FILE).exists()
    for _ in range(2):
        with lock_workdir(workdir):
            pass


@pytest.mark.parametrize("again", [False, True], ids=["renamed", "in the place of another"])
def test_a_directory_that_is_renamed(tmp_path, again):
    workdir = epath.Path(tmp_path / "run")
    with lock_workdir(workdir) as check_held:
        check_held()
        workdir.rename(tmp_path / "renamed")
        with (
            lock_workdir(workdir) if again else contextlib.nullcontext(),
            pytest.raises(RunError, match="run: was removed or renamed while this run was in it"),
        ):
            check_held()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"--workdir = .* cannot be written"),
        lock(epath.Path(tmp_path / "file" / "run")),
    ):
        pass


def test_where_no_kernel_locks_files(tmp_path):
    path, options = epath.Path(tmp_path / "lock"), {"renew_seconds": 0.4}
    with another_process("renewed_lock", path, **options) as process:
        with pytest.raises(ConfigError) as error, renewed_lock(path, **options):
            pass
        assert f"process {process.pid}" in str(error.value)
    # Left behind by SIGKILL: it is not renewed any more.
    left = path.read_text()
    with renewed_lock(path, **options):
        assert path.read_text() != left
    assert not path.exists()


def test_a_lease_that_is_being_rewritten_names_its_owner(tmp_path):
    path, stop = epath.Path(tmp_path / "lock"), threading.Event()

    def rewrite():
        count = 0
        while not stop.wait(0.01):
            path.write_text("")
            time.sleep(0.1)
            count += 1
            path.write_text(f"process 7 on host 1 {count}")

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        lease = renewed_lock(path, renew_seconds=0.4)
        with pytest.raises(ConfigError, match="process 7 on host"), lease:
            pass
    finally:
        stop.set()
        thread.join()
