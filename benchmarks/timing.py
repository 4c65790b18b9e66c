"""Times functions against a baseline in one process, and writes down what came out.

Machines are never quite idle. So the functions take turns, every figure is a ratio to the
baseline's turn of the same round, and CPU time is reported next to wall time.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from vmoe_prc.workdir.text_tables import aligned_lines


class Times(NamedTuple):
    """Seconds of each repetition of one function.

    Attributes:
      wall: Wall-clock seconds.
      cpu: Seconds of CPU of this process, all threads together.
    """

    wall: list[float]
    cpu: list[float]


def take_turns(
    functions: Mapping[str, Callable[[], Any]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Times]:
    """Times each function once a round, from another one on in every round.

    Args:
      functions: What to time, by name. Each must return only when its work is done (or
        JAX arrays, which are waited for), and is called once before the timing starts.
      repetitions: Rounds.
      clock: Clock of the wall time.
      cpu_clock: Clock of the CPU time.
    """
    names = list(functions)
    times = {name: Times([], []) for name in names}
    for name in names:
        _finish(functions[name]())
    for i in range(repetitions):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            wall, cpu = clock(), cpu_clock()
            _finish(functions[name]())
            times[name].cpu.append(cpu_clock() - cpu)
            times[name].wall.append(clock() - wall)
    return times


def compare(times: Mapping[str, Times], baseline: str) -> dict[str, dict[str, float]]:
    """Compares each function with the baseline, round by round.

    Returns:
      By name: `seconds` and `cpu_seconds`, the least of all repetitions; `ratio`, the
      median over rounds of wall time / the baseline's, with quartiles `low` and `high`;
      `least_ratio`, the ratio of the least wall times, and `cpu_ratio`, of the least CPU times.
    """
    base = times[baseline]
    rows = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own.wall, base.wall, strict=True)]
        low, median, high = _quartiles(ratios)
        rows[name] = {
            "seconds": min(own.wall),
            "cpu_seconds": min(own.cpu),
            "ratio": median,
            "low": low,
            "high": high,
            "least_ratio": min(own.wall) / min(base.wall),
            "cpu_ratio": min(own.cpu) / max(min(base.cpu), 1e-9),
        }
    return rows


def machine() -> dict[str, Any]:
    """Describes the machine and the versions of what runs on it."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "tensorflow-cpu", "tensorflow", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def parser(doc: str | None, repetitions: int) -> argparse.ArgumentParser:
    """Makes a parser with the flags that all benchmarks have.

    Args:
      doc: Docstring of the benchmark's module.
      repetitions: Default of `--repetitions`.
    """
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--repetitions", type=int, default=repetitions, help="rounds of timing")
    result.add_argument("--output", type=pathlib.Path, help="a JSON file for all results")
    return result


def integers(text: str) -> list[int]:
    """Parses a flag's value such as `224,384`."""
    return [int(part) for part in text.split(",")]


def numbers(text: str) -> list[float]:
    """Parses a flag's value such as `1.0,1.05`."""
    return [float(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Parses a flag's value such as `einsum,gather`."""
    return text.split(",")


def report(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints rows as a table; with `--output`, writes them with flags and machine as JSON.

    Args:
      args: The parsed flags.
      rows: One mapping of column to value for each line; all have the same columns.
      more: Further entries of the JSON file.
    """
    print(format_table(rows))
    if args.output:
        record = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "flags": {name: value for name, value in vars(args).items() if name != "output"},
            "rows": list(rows),
            **more,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2, default=str) + "\n")


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lines up rows under their column names; numbers get four digits."""
    cells = [list(rows[0]), *([_format(value) for value in row.values()] for row in rows)]
    return "\n".join(aligned_lines(cells, str.rjust))


def _finish(result: Any) -> None:
    if result is None:
        return
    # Not at the top: benchmarks without JAX do not wait for it.
    import jax

    jax.block_until_ready(result)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _cpu_model() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
