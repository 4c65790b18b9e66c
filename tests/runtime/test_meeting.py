"""Meetings of processes, here of threads: all arrive, or each learns who is missing."""

import concurrent.futures
import socket
import time

import pytest

from vmoe_prc.errors import RunError
from vmoe_prc.runtime.meeting import meet


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def outcomes(address, arguments, timeout=20.0):
    """Calls `meet` with each (count, index) at once; returns None or the error of each."""
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as threads:
        calls = [threads.submit(meet, address, *each, timeout) for each in arguments]
        return [call.exception() for call in calls]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_meet(address, count):
    assert outcomes(address, [(count, index) for index in range(count)]) == [None] * count


def test_every_process_learns_who_is_missing(address):
    start = time.monotonic()
    errors = outcomes(address, [(4, 0), (4, 2)], timeout=3.0)
    assert time.monotonic() - start < 10
    for error in errors:
        assert isinstance(error, RunError)
        assert "processes 1, 3 of 4 did not come within 3 s" in str(error)


def test_process_zero_is_missing(address):
    [error] = outcomes(address, [(2, 1)], timeout=0.5)
    assert "process 0 of 2" in str(error) and "Connection refused" in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([(3, 0), (3, 1), (3, 1)], "two processes have --process_id=1"),
        ([(3, 0), (2, 1)], "process 0 has --num_processes=3, process 1 has 2"),
    ],
)
def test_mistakes_end_the_meeting_at_once(address, arguments, message):
    # The time limit of a test is shorter than the timeout of the meeting.
    errors = outcomes(address, arguments, timeout=3600.0)
    assert [message in str(error) for error in errors] == [True] * len(arguments)


def test_strangers_at_the_port_are_ignored(address):
    host, port = address.split(":")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first = threads.submit(meet, address, 2, 0, 20.0)
        for text in [b"GET / HTTP/1.1\r\n\r\n", b"", b"vmoe_prc x y\n", b"\xff\xfe\n"]:
            while True:
                try:
                    with socket.create_connection((host, int(port)), timeout=5) as stranger:
                        stranger.sendall(text)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
        assert not first.done()
        meet(address, 2, 1, 20.0)
        first.result(timeout=20)


def test_a_port_in_use_is_one_line(address):
    with (
        socket.create_server(("", int(address.split(":")[1]))),
        pytest.raises(RunError, match="process 0 cannot listen at port"),
    ):
        meet(address, 2, 0, 1.0)
