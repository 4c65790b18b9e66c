"""Signals that reach a process more than once for one reason.

Ctrl-C in a terminal and `timeout` signal a whole group of processes, and a parent in it signals
its child again; Slurm and systemd signal every process of a job.
"""

import signal
import time
from collections.abc import Callable
from typing import Any

# Further signals within this time belong to the first one.
SAME_NOTICE_SECONDS = 2.0

Handler = Callable[[int, Any], None]


def notice_handler(first: Callable[[int], None], again: Callable[[int], None]) -> Handler:
    """Returns a handler that tells a second notice from a repetition of the first one.

    Args:
      first: Called with the number of the first signal.
      again: Called with the number of each signal that comes more than `SAME_NOTICE_SECONDS`
        after the first one.
    """
    began: float | None = None

    def receive(number: int, frame: Any) -> None:
        nonlocal began
        now = time.monotonic()
        if began is None:
            began = now
            first(number)
        elif now - began > SAME_NOTICE_SECONDS:
            again(number)

    return receive


def raise_with(handler: Any) -> Callable[[int], None]:
    """Returns a function that sets a handler of a signal, and raises the signal again."""

    def again(number: int) -> None:
        signal.signal(number, handler)
        signal.raise_signal(number)

    return again
