"""The `metrics.jsonl` of a run, which needs no tool to read.

A line of `metrics.jsonl` is a JSON object, `{"step": 10, "time": ..., "train/loss": ...}`,
with every metric of that step. JSON has no NaN and no infinities: they are written as the
strings "NaN", "Infinity" and "-Infinity", which `read_metrics` and `float` understand.
"""

import json
import math
from collections.abc import Iterator
from os import PathLike
from typing import Any

from absl import logging
from etils import epath

from vmoe_prc.errors import UserError
from vmoe_prc.workdir.atomic import atomic_write

METRICS_FILE = "metrics.jsonl"


class MetricsError(UserError, ValueError):
    """A damaged `metrics.jsonl`; the text names the file and the line."""


NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def truncate_metrics(path: str | PathLike[str], last_step: float) -> None:
    """Drops what a killed run had written after the checkpoint that it resumes from.

    Lines of later steps go, and the torn last line of a kill in mid-write. The file is
    replaced as a whole or not at all. A missing file is left missing.

    Args:
      path: The `metrics.jsonl`.
      last_step: Last step to keep, the checkpoint's; -1 when starting over.

    Raises:
      MetricsError: If the file has other lines, which are not ours to remove.
    """
    path = epath.Path(path)
    if not path.exists():
        return
    text = _read(path)
    kept, dropped = [], 0
    for number, line, record in _parse(text):
        if record is None and not _is_torn(number, text):
            raise _no_record(path, number, line)
        if record is not None and record["step"] <= last_step:
            kept.append(line + "\n")
        else:
            dropped += 1
    if (repaired := "".join(kept)) != text:
        logging.info("%s: dropped %d lines after step %s", path, dropped, last_step)
        with atomic_write(path) as temporary:
            temporary.write_text(repaired)


def read_metrics(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`, also one that is being written.

    Args:
      path: The `metrics.jsonl`.

    Returns:
      One dict a step, in the order of the file: `step`, `time` (seconds since 1970) and
      the metrics.

    Raises:
      FileNotFoundError: If there is no such file.
      MetricsError: If a line, other than a torn last one, is not a record.
    """
    text = _read(epath.Path(path))
    steps: dict[int, dict[str, Any]] = {}
    for number, line, record in _parse(text):
        if record is not None:
            values = {k: NON_FINITE.get(v, v) for k, v in record.items()}
            steps.setdefault(record["step"], {}).update(values)
        elif not _is_torn(number, text):
            raise _no_record(path, number, line)
    return list(steps.values())


def _read(path: epath.Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise MetricsError(f"{path}: is no text ({error.reason}); it is damaged") from None


def _is_torn(number: int, text: str) -> bool:
    """Whether a line is the last one, without its end."""
    return number == text.count("\n") + 1 and not text.endswith("\n")


def _no_record(path: str | PathLike[str], number: int, line: str) -> MetricsError:
    return MetricsError(f"{path}, line {number}: not a metrics record: {line[:80]!r}")


def _parse(text: str) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Yields number, text and record of each line, None for one that is no record."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        valid = isinstance(record, dict) and type(record.get("step")) is int
        yield number, line, record if valid else None
