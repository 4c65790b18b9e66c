"""Notices that a run should end: SIGTERM, when the machine is taken away, and Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

from vmoe_prc.runtime.signals import SAME_NOTICE_SECONDS, notice_handler, raise_with


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Listens for SIGTERM, and gives a function that returns whether to stop after a step.

    Every process must call it after each step. With several processes, a signal to one makes
    it True in all after the same step, by JAX's protocol, which costs a step nothing. A second
    notice, see `signals`, ends a single process at once.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if not _signals_arrive_here():
        yield lambda step: False
        return
    received = threading.Event()

    def receive(number: int) -> None:
        logging.warning(
            "a checkpoint will be saved after this step; another signal, more than %g s after "
            "the first, ends at once",
            SAME_NOTICE_SECONDS,
        )
        received.set()

    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, notice_handler(receive, raise_with(previous)))
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def interrupt_as_preemption() -> Iterator[None]:
    """Makes the first Ctrl-C within the block a SIGTERM; a second one interrupts as usual.

    It begins where there is something to save, so that what comes before ends at once. A program
    that a shell runs in the background ignores Ctrl-C, and still does.
    """
    if not _signals_arrive_here() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    def receive(number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, notice_handler(receive, raise_with(previous)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _signals_arrive_here() -> bool:
    return threading.current_thread() is threading.main_thread()
