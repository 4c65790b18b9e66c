"""Notice that the machine will be taken away: SIGTERM."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Listens for SIGTERM, and gives a function that says whether to stop after a step.

    Every process must call it after each step. With several of them, a signal to one makes
    it True in all after the same step, by JAX's own protocol, which costs a step nothing. A
    second signal ends a single process at once.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python gives signals to the main thread alone.
        return
    received = threading.Event()

    def receive(number, frame):
        logging.warning("SIGTERM: a checkpoint will be written after this step")
        received.set()
        signal.signal(signal.SIGTERM, previous)

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
