"""Control groups of Linux, which limit what containers and jobs of a cluster may use."""

import pathlib
from collections.abc import Iterator

# Where they are mounted, and the groups of this process: `0::/PATH` of version 2, and lines such
# as `4:cpu,cpuacct:/PATH` of version 1.
ROOT = pathlib.Path("/sys/fs/cgroup")
MEMBERSHIP = pathlib.Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[pathlib.Path]:
    """Yields the directories of the groups of this process, and of the groups that they are in.

    Args:
      controller: The limited resource, such as 'cpu' or 'memory'.
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = ROOT / controllers if controllers else ROOT
        path = mounted / group.strip("/")
        # In a container the path may be that outside of it; its own group is the root then.
        for place in (path, *path.parents):
            if place.is_relative_to(mounted):
                yield place
