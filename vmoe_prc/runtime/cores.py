"""The number of CPU cores that a process may use."""

import math
import os
import pathlib
from collections.abc import Iterator

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_MEMBERSHIP = pathlib.Path("/proc/self/cgroup")


def num_cores() -> int:
    """Returns the number of cores that this process may use.

    It is the smallest of the CPUs of the machine, those of the process's affinity (`taskset`,
    Slurm), and the quotas of its control groups (containers), rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        membership = _MEMBERSHIP.read_text()
    except OSError:  # not Linux
        return allowed
    return min([allowed, *(max(1, math.ceil(quota)) for quota in quotas(membership))])


def quotas(membership: str, root: pathlib.Path = _CGROUPS) -> Iterator[float]:
    """Yields the limits of control groups, and of the groups that they are in, in CPUs.

    Args:
      membership: Content of /proc/self/cgroup: `0::/PATH` of version 2, and lines such as
        `4:cpu,cpuacct:/PATH` of version 1.
      root: Where the groups are mounted.
    """
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        path = mounted / group.strip("/")
        # In a container the path may be that outside of it; its own group is the root then.
        for place in (path, *path.parents):
            if place.is_relative_to(mounted):
                yield from _quota(place)


def _quota(group: pathlib.Path) -> Iterator[float]:
    files = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for names in files:
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
