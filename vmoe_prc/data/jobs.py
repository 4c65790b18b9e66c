"""Runs functions in other processes, which import nothing of the program that asks.

`multiprocessing` would run the main module of the program again: a script without
`if __name__ == "__main__"` would start itself anew and wait for its own lock.
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from vmoe_prc.data.errors import DatasetError

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    with contextlib.ExitStack() as stack:
        free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(min(processes, len(jobs))):
            process = _Process()
            stack.callback(process.end)
            free.put(process)

        def run(job: _Job) -> _Result:
            process = free.get()
            try:
                return process.run(function, job)
            finally:
                free.put(process)

        threads = concurrent.futures.ThreadPoolExecutor(processes)
        # Called before the processes end, which ends the jobs that are running.
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        for future in concurrent.futures.as_completed([threads.submit(run, x) for x in jobs]):
            yield future.result()


class _Process:
    """A process that answers one job at a time, and ends when its input does."""

    def __init__(self):
        paths = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import answer_jobs; answer_jobs()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def run(self, function: Callable[[Any], Any], job: Any) -> Any:
        """Runs one job."""
        try:
            pickle.dump((function, job), cast("BinaryIO", self._process.stdin))
            cast("BinaryIO", self._process.stdin).flush()
            result, error = pickle.load(cast("BinaryIO", self._process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise DatasetError(
                "a process that prepares the data has died (killed, or out of memory); start "
                "again to resume, perhaps with fewer --processes"
            ) from error
        if error is not None:
            raise error
        return result

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
            answer = None, error
        pickle.dump(answer, write)
        write.flush()


def _end_with_input(requests: BinaryIO, to_jobs: BinaryIO) -> None:
    """Hands on the input, and ends this process when the one that asks has been killed."""
    while content := os.read(requests.fileno(), 1 << 16):
        to_jobs.write(content)
        to_jobs.flush()
    os._exit(1)


def answer_jobs() -> None:
    """Answers jobs from standard input on standard output."""
    # A terminal signals all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print does not come between the answers.
    os.dup2(2, 1)
    reader, writer = os.pipe()
    forward = threading.Thread(
        target=_end_with_input, args=(sys.stdin.buffer, os.fdopen(writer, "wb")), daemon=True
    )
    forward.start()
    _serve(os.fdopen(reader, "rb"), answers)
