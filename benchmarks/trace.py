"""What the profiler says of a device: how long it was busy, and with what."""

import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

# Each GPU is a plane, and each of its streams a line; other lines only sum these up.
DEVICE_PLANE = re.compile(r"/device:GPU:\d+")
STREAM = re.compile(r"Stream #.*")
# The first pattern that a kernel's name has says what it is.
_KINDS = (
    ("copies from device", r"DtoH|D2H"),
    ("copies to device", r"HtoD|H2D"),
    ("other copies", r"memcpy|memset"),
    ("attention", r"fmha|sdpa|flash"),
    ("matrix products", r"gemm|nvjet|cublas|cutlass|xmma|matmul|dot"),
    ("convolutions", r"conv(?!ert)|cudnn"),
    ("collectives", r"nccl|all-reduce|all-gather|all-to-all"),
    ("sorting, gathering, scattering", r"sort|gather|scatter|topk"),
)
_OTHER = "element-wise and sums"


class Kernel(NamedTuple):
    """Something that a stream ran; times in nanoseconds."""

    name: str
    start: float
    end: float


def record(run: Callable[[], Any], steps: int) -> jax.profiler.ProfileData:
    """Traces some calls of a compiled function, none of which is waited for but the last.

    Args:
      run: Calls it once. It should have been called before, so that nothing is compiled.
      steps: How many calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                result = run()
            jax.block_until_ready(result)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(path))


def kernels(profile: jax.profiler.ProfileData) -> list[list[Kernel]]:
    """Lists what the streams of each device ran, for devices that ran anything."""
    devices = (
        [
            Kernel(event.name, event.start_ns, event.end_ns)
            for line in plane.lines
            if STREAM.fullmatch(line.name)
            for event in line.events
        ]
        for plane in profile.planes
        if DEVICE_PLANE.fullmatch(plane.name)
    )
    return [found for found in devices if found]


def busy_share(found: Iterable[Kernel]) -> float:
    """Share of the time, from the first kernel's start to the last one's end, with a kernel."""
    ordered = sorted(found, key=lambda kernel: kernel.start)
    busy, last = 0.0, ordered[0].start
    for kernel in ordered:
        busy += max(0.0, kernel.end - max(kernel.start, last))
        last = max(last, kernel.end)
    return busy / (last - ordered[0].start)


def by_kind(found: Iterable[Kernel]) -> dict[str, dict[str, float]]:
    """Sums the kernels up by what their names say they do, the longest first.

    Returns:
      By kind: `calls`, `seconds`, and the `share` of all kernels' seconds.
    """
    rows: dict[str, dict[str, float]] = {}
    for kernel in found:
        row = rows.setdefault(_kind(kernel.name), {"calls": 0, "seconds": 0.0})
        row["calls"] += 1
        row["seconds"] += (kernel.end - kernel.start) / 1e9
    total = sum(row["seconds"] for row in rows.values())
    ordered = sorted(rows.items(), key=lambda item: -item[1]["seconds"])
    return {kind: {**row, "share": row["seconds"] / total} for kind, row in ordered}


def longest(found: Iterable[Kernel], steps: int, number: int = 12) -> dict[str, float]:
    """Returns the milliseconds a step of the kernels, by name, that take the longest."""
    times: dict[str, float] = {}
    for kernel in found:
        times[kernel.name] = times.get(kernel.name, 0.0) + (kernel.end - kernel.start) / 1e6 / steps
    return dict(sorted(times.items(), key=lambda item: -item[1])[:number])


def _kind(name: str) -> str:
    for kind, pattern in _KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return _OTHER
