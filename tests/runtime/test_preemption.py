"""Signals that end a run: one notice however often they come, and a second one."""

import signal
import time

import pytest

from vmoe_prc.runtime import signals
from vmoe_prc.runtime.preemption import interrupt_as_preemption, preemption_notice


def raise_all(*numbers):
    for number in numbers:
        signal.raise_signal(number)  # Another thread may receive os.kill's, a moment later.


def test_a_second_notice_is_one_that_comes_later(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    with preemption_notice() as preempted, interrupt_as_preemption():
        assert not preempted(1)
        # A study and its terminal, and `timeout`, signal twice.
        raise_all(signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
        assert preempted(1)
        now[0] += signals.SAME_NOTICE_SECONDS + 0.1
        with pytest.raises(KeyboardInterrupt):
            raise_all(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preemption_notice() as preempted, interrupt_as_preemption():
            raise_all(signal.SIGINT)
            assert not preempted(1)
    finally:
        signal.signal(signal.SIGINT, before)
