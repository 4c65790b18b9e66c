"""The end of a process in which no Python code may be able to run any more."""

import contextlib
import ctypes
import faulthandler
import sys
from collections.abc import Callable, Iterator

# How long a process may take to clean up.
CLEANUP_SECONDS = 60

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2
# Whether there is a deadline; the first one counts.
_is_set = False


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux with 64 bits: a function that a thread calls with a value."""

    _fields_ = (
        ("value", ctypes.c_int64),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("unused", ctypes.c_byte * 40),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec` of Linux with 64 bits."""

    _fields_ = (("interval", ctypes.c_int64 * 2), ("seconds", ctypes.c_int64 * 2))


def exit_after(seconds: int, status: int) -> Callable[[], None]:
    """Ends this process after some seconds, unless the function that it returns is called.

    While there is a deadline, further ones have no effect. It needs no lock of Python: where
    TensorFlow destroys an iterator it may hold that lock, and wait for threads that want it. The
    stacks of all threads are written to stderr first. Elsewhere than on Linux the status is 1.

    Args:
      seconds: How long it may still run, at least 1.
      status: Exit status.
    """
    global _is_set
    if _is_set:
        return lambda: None
    _is_set = True
    delete = _call_exit_later(seconds, status)
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds, exit=delete is None, file=sys.__stderr__)

    def call_off() -> None:
        global _is_set
        _is_set = False
        faulthandler.cancel_dump_traceback_later()
        if delete is not None:
            delete()

    return call_off


@contextlib.contextmanager
def limited_cleanup() -> Iterator[None]:
    """If the block takes more than a minute, the process ends with status 1."""
    call_off = exit_after(CLEANUP_SECONDS, 1)
    try:
        yield
    finally:
        call_off()


def _call_exit_later(seconds: int, status: int) -> Callable[[], object] | None:
    """Lets a thread of the C library call `_exit(status)` half a second after those.

    Returns:
      A function that prevents it; None where this needs another system.
    """
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "timer_create"):  # Before glibc 2.34 it is in another library.
        return None
    function = ctypes.cast(library._exit, ctypes.c_void_p).value
    event = _Event(value=status, notify=_SIGEV_THREAD, function=function)
    timer = ctypes.c_void_p()
    if library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        return None
    times = _Times((0, 0), (seconds, 500_000_000))
    library.timer_settime(timer, 0, ctypes.byref(times), None)
    return lambda: library.timer_delete(timer)
