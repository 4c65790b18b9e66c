"""The memory of devices and hosts, and whether a compiled step fits it."""

import itertools
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from vmoe_prc.errors import MEMORY_ADVICE, RunError
from vmoe_prc.runtime.control_groups import groups

_STATUS = pathlib.Path("/proc/self/status")
# Limits of both versions of control groups.
_GROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")


def check_program_fits(
    step: Any, arguments: Sequence[Any], devices: Sequence[Any], copied: int = 0
) -> None:
    """Checks that a compiled step fits the memory of the host, where the devices are CPUs.

    Linux would end the program in the middle of the step, without a word, or XLA would wait
    for ever for a buffer that was refused. Other devices raise an error.

    Args:
      step: The jitted step; it is compiled if it has not been.
      arguments: Its arguments, or their shapes, dtypes and shardings.
      devices: Devices of this process.
      copied: Bytes of a device that are copied during the step, for a checkpoint.

    Raises:
      RunError: If it does not fit.
    """
    if devices[0].platform != "cpu":
        return
    sizes = step.lower(*arguments).compile().memory_analysis()
    new = sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes + copied
    # The arguments are in memory by now.
    for needed, limit in (
        (new + sizes.argument_size_in_bytes, host_memory() // len(devices)),
        (new, free_memory() // len(devices)),
    ):
        if needed > limit:
            raise RunError(
                f"out of memory: a step of training or evaluation needs {needed / 2**30:,.1f} GiB "
                f"per device, of which {limit / 2**30:,.1f} GiB are there; {MEMORY_ADVICE}"
            )


def device_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def device_memory(devices: Sequence[Any]) -> int | None:
    """Returns the bytes of a device, its part of the host's for CPUs; None if unknown.

    Args:
      devices: Devices of this process.
    """
    if devices[0].platform == "cpu":
        return free_memory() // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def host_memory() -> int:
    """Returns the bytes that this process may use: of the machine, its groups and its limits."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    sizes += [limit for limit, _ in _limits()]
    for group, name in itertools.product(groups("memory"), _GROUP_LIMITS):
        try:
            sizes.append(int((group / name).read_text()))
        except (OSError, ValueError):  # There is none, or it is 'max'.
            continue
    return min(sizes)


def free_memory() -> int:
    """Returns `host_memory`, less what the process has taken of its limits.

    Libraries and threads take about a GiB of them before a model is made.
    """
    return min([host_memory(), *(max(limit - _in_use(name), 0) for limit, name in _limits())])


def _limits() -> list[tuple[int, str]]:
    """Returns the limits of this process, and the name in /proc of what they are for."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    kinds = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    limits = [(resource.getrlimit(kind)[0], name) for kind, name in kinds]
    return [(limit, name) for limit, name in limits if limit != resource.RLIM_INFINITY]


def _in_use(name: str) -> int:
    """Returns a number of bytes of this process in /proc, 0 where there is none."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:  # macOS
        return 0
    return 1024 * int(found[1]) if found else 0
