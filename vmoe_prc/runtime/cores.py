"""The number of CPU cores that a process may use."""

import math
import os
import pathlib
from collections.abc import Iterator

from vmoe_prc.runtime.control_groups import groups


def num_cores() -> int:
    """Returns the number of cores that this process may use.

    It is the smallest of three numbers: the CPUs of the machine, the CPUs of the process's
    affinity (`taskset`, Slurm), and the quotas of its control groups (containers), rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min([allowed, *(max(1, math.ceil(quota)) for quota in quotas())])


def quotas() -> Iterator[float]:
    """Yields the limits of the control groups of this process, in CPUs."""
    for group in groups("cpu"):
        yield from _quota(group)


def _quota(group: pathlib.Path) -> Iterator[float]:
    files = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for names in files:
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
