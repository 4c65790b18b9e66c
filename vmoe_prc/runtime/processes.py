"""Several processes, one per host, that connect, agree, and fail together."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from vmoe_prc.config import ConfigError
from vmoe_prc.errors import PreemptedError, RunError
from vmoe_prc.runtime.deadline import CLEANUP_SECONDS, exit_after
from vmoe_prc.runtime.meeting import meet
from vmoe_prc.runtime.programs import explain

# Bytes of a message that one process has for the others.
_MESSAGE_SIZE = 1024
# A process that sends no heartbeat for so long is dead to the others, which JAX ends. Heartbeats
# are half as long apart, so that a process may hang for 75 s; JAX's 100 s are too few for a minute.
_HEARTBEAT_SECONDS = 150
# How long process 0 may download and prepare a data set while the others wait.
_BARRIER_TIMEOUT_SECONDS = 24 * 3600
# Part of JAX's error if the program has used JAX before.
_TOO_LATE = "before any JAX calls"
# Environment variables in which launchers give the number of processes.
_COUNT_VARIABLES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "SKYPILOT_NUM_NODES", "WORLD_SIZE")


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: float = 900,
) -> None:
    """Joins this process to the others of the run, before anything else of JAX, once.

    Without an address JAX finds the processes: on TPU pods, under Slurm and Open MPI, and on
    Kubernetes. Where it finds none this is the only process, unless `num_processes` or an
    environment variable of the launcher gives more than one.

    Args:
      coordinator_address: HOST:PORT of process 0, the same for all.
      num_processes: Number of processes; 1 keeps JAX from looking for others.
      process_id: Index of this process, from 0; given together with the address.
      timeout_seconds: How long the processes wait for each other at `coordinator_address`.

    Raises:
      ConfigError: If the arguments do not fit together, or the number of processes is not the
        expected one.
      RunError: If the others cannot be reached, or some are missing after the timeout.
    """
    explicit = _explicit_arguments(coordinator_address, num_processes, process_id)
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if explicit:
        meet(*explicit, timeout_seconds)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes if explicit else None,
            process_id,
            # Under Slurm JAX would show each process only one of its devices.
            cluster_detection_method="deactivate" if explicit else None,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            # A process that fails must not keep the others waiting for it to leave.
            shutdown_timeout_seconds=60,
        )
    except ValueError:
        # JAX has found no other processes.
        if explicit:
            raise
    except RuntimeError as error:
        # A program that has used JAX, such as a notebook, is one process unless it asks for more.
        if not explicit and _TOO_LATE in str(error):
            return
        raise RunError(f"the processes of this run do not find each other: {error}") from None
    _check_count(num_processes, jax.process_count(), os.environ)
    if jax.process_count() > 1:
        # Gloo, which connects CPUs, fails where first uses are more than 30 s apart.
        multihost_utils.sync_global_devices("connected")


def _explicit_arguments(
    address: str | None, count: int | None, index: int | None
) -> tuple[str, int, int] | None:
    """Returns the arguments, checked; None where JAX is to find the processes."""
    if address is None and index is None:
        return None
    if address is None or count is None or index is None:
        names = "--coordinator_address, --num_processes and --process_id"
        expected = "give all three; where JAX finds the processes, --num_processes or none"
        raise ConfigError(names, (address, count, index), expected)
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError("--coordinator_address", address, "expected HOST:PORT")
    if not 0 <= index < count:
        expected = f"must be from 0 to --num_processes - 1, which is {count - 1}"
        raise ConfigError("--process_id", index, expected)
    return address, count, index


def _check_count(expected: int | None, found: int, environ: Mapping[str, str]):
    """Checks the number of processes against the flag, or else the launcher's variables."""
    if expected is not None:
        if found != expected:
            advice = f"JAX has found {found}; give --coordinator_address and --process_id, too"
            raise ConfigError("--num_processes", expected, advice)
        return
    if found > 1:
        return
    advice = "--num_processes=1 uses only this process"
    for variable in _COUNT_VARIABLES:
        if environ.get(variable, "1") not in ("", "1"):
            reason = f"JAX has found only one process; {advice}"
            raise ConfigError(variable, environ[variable], reason)
    if "JOB_COMPLETION_INDEX" in environ:
        reason = f"an Indexed Job of Kubernetes needs --num_processes; {advice}"
        raise ConfigError("JOB_COMPLETION_INDEX", environ["JOB_COMPLETION_INDEX"], reason)


def connect_devices(mesh: jax.sharding.Mesh) -> None:
    """Opens the connections between the devices of every row and column of the mesh.

    Every process calls it. Gloo, which connects CPUs, fails where the processes of a row first
    use it more than 30 s apart, as after compilations that take different times.
    """
    if jax.process_count() == 1:
        return
    axes = [*mesh.axis_names, mesh.axis_names]

    def sums():
        one = jnp.ones((), jnp.int32)
        return [jax.lax.psum(jax.lax.pcast(one, axis, to="varying"), axis) for axis in axes]

    compiled = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=jax.P())).lower()
    compiled = compiled.compile()
    _barrier("connect_devices")
    jax.block_until_ready(compiled())


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
def end_in_time() -> Iterator[contextlib.AbstractContextManager[None]]:
    """Gives another block: an exception that leaves it has to leave this one within a minute.

    Otherwise the process ends with the status of the exception, as cleaning up may hang. One of
    several processes that fails ends after that minute in any case: the others wait for it.
    """
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def watch() -> Iterator[None]:
            try:
                yield
            except BaseException as error:
                call_off = exit_after(CLEANUP_SECONDS, explain(error).status)
                if jax.process_count() > 1 and not isinstance(error, PreemptedError):
                    logging.error("process %d ends: %s", jax.process_index(), error)
                else:
                    stack.callback(call_off)
                raise

        yield watch()


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
    """Process 0 runs the block before the others, which also continue if it raises."""
    if not is_main_process():
        _barrier("process_zero_first")
    try:
        yield
    finally:
        if is_main_process():
            _barrier("process_zero_first")


def gathered(arrays: Any) -> Any:
    """Returns a tree of global arrays as whole NumPy arrays, in every process."""
    return multihost_utils.process_allgather(arrays, tiled=True)


def share_out(tasks: Sequence[Callable[[], float]]) -> list[float]:
    """Calls each function in one of the processes, by turns; all of them get all results.

    Args:
      tasks: Functions without collectives, the same ones in the same order in every process.

    Raises:
      RunError: If another process fails; a process that fails raises its own exception.
    """
    count, results = jax.process_count(), np.zeros(len(tasks))
    with raise_everywhere():
        for i in range(jax.process_index(), len(tasks), count):
            results[i] = tasks[i]()
    if count == 1:
        return results.tolist()
    # As bytes: JAX would round to float32.
    rows = multihost_utils.process_allgather(results.view(np.uint8)).view(np.float64)
    return [float(rows[i % count, i]) for i in range(len(tasks))]


def broadcast_from_process_zero(text: str) -> str:
    """Gives every process the text of process 0."""
    return text if jax.process_count() == 1 else _gather(text)[0]


def _gather(text: str) -> list[str]:
    buffer = np.zeros(_MESSAGE_SIZE, np.uint8)
    message = text.encode()[:_MESSAGE_SIZE]
    buffer[: len(message)] = np.frombuffer(message, np.uint8)
    rows = multihost_utils.process_allgather(buffer)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def _barrier(name: str) -> None:
    """Waits for all processes through JAX's coordination service, which needs no device."""
    try:
        wait = multihost.get_barrier_sync_fn()
        wait(key=name, timeout_ms=_BARRIER_TIMEOUT_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise RunError(f"not all processes have come to {name}: {error}") from None
