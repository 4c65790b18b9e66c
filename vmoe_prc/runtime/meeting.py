"""A meeting of all processes before JAX connects them, which names those that are missing.

JAX's own client aborts the process after its timeout, without a word on who was missing.
"""

import contextlib
import socket
import time

from vmoe_prc.errors import RunError

_GREETING = "vmoe_prc"
_READY = "ready"
_MAX_LINE_BYTES = 4096


def meet(address: str, count: int, index: int, timeout_seconds: float) -> None:
    """Waits until all processes are there.

    Process 0 listens at the port that JAX's coordination service uses afterwards. The others
    send it their index and the number of processes, and receive its verdict.

    Args:
      address: HOST:PORT of process 0, the same for all.
      count: Number of processes.
      index: Index of this process, from 0.
      timeout_seconds: How long to wait.

    Raises:
      RunError: In every process, if some are missing after the timeout, two have the same
        index, or their numbers of processes differ.
    """
    if count == 1:
        return
    deadline = time.monotonic() + timeout_seconds
    if index == 0:
        verdict = _collect(address, count, deadline)
    else:
        verdict = _report(address, count, index, deadline)
    if verdict != _READY:
        suffix = f" within {timeout_seconds:g} s" if "did not come" in verdict else ""
        raise RunError(f"the processes do not meet at {address}: {verdict}{suffix}")


def _collect(address: str, count: int, deadline: float) -> str:
    """Collects the reports in process 0; returns the verdict, which all senders receive."""
    arrived: set[int] = set()
    connections: list[socket.socket] = []
    verdict = ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(int(address.rpartition(":")[2]), count))
        while not verdict and len(arrived) < count - 1:
            try:
                server.settimeout(_remaining(deadline))
                connection = stack.enter_context(server.accept()[0])
                words = _read_line(connection, min(deadline, time.monotonic() + 10)).split()
            except OSError:
                # A timeout, or a process that has gone away again.
                if time.monotonic() >= deadline:
                    missing = set(range(1, count)) - arrived
                    verdict = f"{_listed(sorted(missing))} of {count} did not come"
                continue
            if len(words) == 3 and words[0] == _GREETING and words[1].isdecimal():
                verdict = _objection(int(words[1]), words[2], arrived, count)
                arrived.add(int(words[1]))
                connections.append(connection)
        verdict = verdict or _READY
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(f"{verdict}\n".encode())
    return verdict


def _report(address: str, count: int, index: int, deadline: float) -> str:
    """Reports to process 0; returns its verdict, or that it is missing."""
    host, _, port = address.rpartition(":")
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            timeout = _remaining(deadline)
            with socket.create_connection((host.strip("[]"), int(port)), timeout) as connection:
                connection.sendall(f"{_GREETING} {index} {count}\n".encode())
                # Process 0 may have started later; at its deadline it reports who is missing.
                if verdict := _read_line(connection, deadline + 30):
                    return verdict
                reason = "it closed the connection"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.5, _remaining(deadline)))
    return f"process 0 of {count} ({reason}) did not come"


def _listen(port: int, count: int) -> socket.socket:
    dualstack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualstack else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, backlog=count, dualstack_ipv6=dualstack
        )
    except OSError as error:
        raise RunError(f"process 0 cannot listen at port {port}: {error.strerror}") from None


def _objection(index: int, its_count: str, arrived: set[int], count: int) -> str:
    if its_count != str(count):
        return f"process 0 has --num_processes={count}, process {index} has {its_count}"
    if index in arrived or not 0 < index < count:
        return f"two processes have --process_id={index}"
    return ""


def _listed(indices: list[int]) -> str:
    return f"process{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _remaining(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _read_line(connection: socket.socket, deadline: float) -> str:
    """Reads up to the end of a line; empty if the other end closes before it."""
    text = b""
    while not text.endswith(b"\n") and len(text) < _MAX_LINE_BYTES:
        connection.settimeout(_remaining(deadline))
        part = connection.recv(_MAX_LINE_BYTES)
        if not part:
            return ""
        text += part
    return text.decode(errors="replace").strip()
