"""Runs functions in other processes, which import nothing of the program that asks.

`multiprocessing` would run the main module of the program again: a script without
`if __name__ == "__main__"` would start itself again, and wait for its own lock or fail.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO, TypeVar, cast

from vmoe_prc.data.errors import DatasetError
from vmoe_prc.runtime.quiet_start import quiet_tensorflow

# Between the moment when a process closes its files and the one when it is gone.
_LAST_SECONDS = 10

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class ProcessDiedError(RuntimeError):
    """A process of a pool has ended; the text names it and the reason."""


class RemoteError(RuntimeError):
    """An exception of a process that cannot be pickled; its traceback is a note."""


class Pool:
    """Processes that run jobs, each one at a time; jobs begin in their order.

    Args:
      processes: Number of processes.
      start: A function of a module and its argument, which each process runs before its first
        job.

    Attributes:
      pids: Numbers of the processes.
    """

    def __init__(self, processes: int, start: tuple[Callable[[Any], None], Any] | None = None):
        self._processes = [_Process(start) for _ in range(processes)]
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        # A thread for each process waits for its answer.
        self._threads = concurrent.futures.ThreadPoolExecutor(processes)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [process.pid for process in self._processes]

    def submit(self, function: Callable[[_Job], _Result], job: _Job) -> "Future[_Result]":
        """Runs a function of a module on a job.

        Returns:
          Its result; or what it raises, with the traceback as a note; or `ProcessDiedError`.
        """
        return self._threads.submit(self._run, function, job)

    def _run(self, function: Callable[[Any], Any], job: Any) -> Any:
        process = self._free.get()
        try:
            return process.run(function, job)
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Ends the processes, also within a job; jobs that wait are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.end()
        self._threads.shutdown()


def run_jobs(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], processes: int = 1
) -> Iterator[_Result]:
    """Runs a function on each job, and yields the results as they come.

    Args:
      function: A function of a module.
      jobs: Its arguments.
      processes: Number of processes; with 1, this process runs them.

    Raises:
      DatasetError: If a process is killed.
      Exception: The first one that a job raises.
    """
    if min(processes, len(jobs)) <= 1:
        yield from map(function, jobs)
        return
    with contextlib.closing(Pool(min(processes, len(jobs)))) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except ProcessDiedError as error:
            raise DatasetError(
                f"a process that prepares the data has died (killed, or out of memory): {error}; "
                "start again to resume, perhaps with fewer --processes"
            ) from error


class _Process:
    """A process that answers one job at a time, and ends when its input does."""

    def __init__(self, start: tuple[Callable[[Any], None], Any] | None):
        paths = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import answer_jobs; answer_jobs()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self._start = start

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, function: Callable[[Any], Any], job: Any) -> Any:
        """Runs one job."""
        if self._start is not None:
            self._ask(*self._start)
            self._start = None
        return self._ask(function, job)

    def _ask(self, function: Callable[[Any], Any], job: Any) -> Any:
        try:
            pickle.dump((function, job), cast("BinaryIO", self._process.stdin))
            cast("BinaryIO", self._process.stdin).flush()
            result, error = pickle.load(cast("BinaryIO", self._process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise ProcessDiedError(f"process {self.pid} {self._ending()}") from error
        if error is not None:
            raise error
        return result

    def _ending(self) -> str:
        """Says how the process has ended, which neither reads nor writes any more."""
        try:
            status = self._process.wait(timeout=_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return "has closed its output"
        if status >= 0:
            return f"ended with status {status}"
        return f"was killed by {signal.Signals(-status).name}"

    def end(self) -> None:
        """Ends the process, also within a job."""
        self._process.kill()
        self._process.wait()


def _serve(read: BinaryIO, write: BinaryIO) -> None:
    while True:
        try:
            function, job = pickle.load(read)
        except EOFError:
            return
        try:
            answer = function(job), None
        except Exception as error:
            answer = None, _portable(error)
        pickle.dump(answer, write)
        write.flush()


def _portable(error: Exception) -> Exception:
    """Returns an exception that can be pickled, with its traceback as a note."""
    lines = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RemoteError(f"{type(error).__name__}: {error}")
    error.add_note(f"In process {os.getpid()}:\n{lines}")
    return error


def _end_with_input(requests: BinaryIO, to_jobs: BinaryIO) -> None:
    """Hands on the input, and ends this process when the one that asks has been killed."""
    while content := os.read(requests.fileno(), 1 << 16):
        to_jobs.write(content)
        to_jobs.flush()
    os._exit(1)


def answer_jobs() -> None:
    """Answers jobs from standard input on standard output."""
    # A terminal, `timeout` and Slurm signal all processes. The first one, which may still need
    # some answers, ends the others.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    quiet_tensorflow()
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print does not come between the answers.
    os.dup2(2, 1)
    reader, writer = os.pipe()
    forward = threading.Thread(
        target=_end_with_input, args=(sys.stdin.buffer, os.fdopen(writer, "wb")), daemon=True
    )
    forward.start()
    _serve(os.fdopen(reader, "rb"), answers)
