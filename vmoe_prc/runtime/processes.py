"""Several processes, one a host: how they meet, agree, and fail together."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from vmoe_prc.config import ConfigError
from vmoe_prc.errors import RunError

# Bytes of a message that one process has for the others.
_MESSAGE_SIZE = 1024


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of the run, before anything else of JAX.

    Without arguments the processes are those that JAX finds by itself: on TPU pods, under
    Slurm, Open MPI and on Kubernetes. Where it finds none this process is alone.

    Args:
      coordinator_address: HOST:PORT of process 0, the same for all.
      num_processes: How many there are.
      process_id: Which one this is, from 0.

    Raises:
      ConfigError: If the arguments do not fit together.
      RunError: If the others cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    if None in given and set(given) != {None}:
        names = "--coordinator_address, --num_processes and --process_id"
        raise ConfigError(names, given, "give all three, or none where JAX finds them by itself")
    if coordinator_address is not None and ":" not in coordinator_address:
        raise ConfigError("--coordinator_address", coordinator_address, "expected HOST:PORT")
    if num_processes is not None and not 0 <= process_id < num_processes:
        expected = f"must be from 0 to --num_processes - 1, which is {num_processes - 1}"
        raise ConfigError("--process_id", process_id, expected)
    try:
        # A process that fails must not keep the others waiting for it to leave.
        jax.distributed.initialize(*given, shutdown_timeout_seconds=60)
    except ValueError:
        # JAX has found no other processes.
        if num_processes is not None:
            raise
    except RuntimeError as error:
        raise RunError(f"the processes of this run do not find each other: {error}") from None


def is_main_process() -> bool:
    """Whether this is process 0, which writes what is to be written once."""
    return jax.process_index() == 0


@contextlib.contextmanager
def raise_everywhere() -> Iterator[None]:
    """If one process leaves the block by an exception, all do.

    Raises:
      RunError: In a process that had no exception, with the text of the first that had.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        texts = _gather(str(failure) or repr(failure) if failure else "")
        failed = [i for i, text in enumerate(texts) if text]
        if failed and failure is None:
            raise RunError(f"process {failed[0]}: {texts[failed[0]]}")
    if failure is not None:
        raise failure


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
    """Process 0 runs the block before the others do, whatever happens in it."""
    if not is_main_process():
        multihost_utils.sync_global_devices("first alone")
    try:
        yield
    finally:
        if is_main_process() and jax.process_count() > 1:
            multihost_utils.sync_global_devices("first alone")


def broadcast_from_process_zero(text: str) -> str:
    """Gives every process the text of process 0."""
    return text if jax.process_count() == 1 else _gather(text)[0]


def _gather(text: str) -> list[str]:
    buffer = np.zeros(_MESSAGE_SIZE, np.uint8)
    message = text.encode()[:_MESSAGE_SIZE]
    buffer[: len(message)] = np.frombuffer(message, np.uint8)
    rows = multihost_utils.process_allgather(buffer)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]
