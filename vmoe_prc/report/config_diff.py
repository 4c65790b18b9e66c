"""In which fields of their configurations runs differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_prc.config import flatten
from vmoe_prc.report.runs import Run

MISSING = "-"


def config_differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Compares configurations.

    Args:
      runs: Runs.

    Returns:
      By full name, in order, each field that is not the same in all runs: its value in
      each of them as text, `MISSING` where there is none.
    """
    configs = [flatten(run.config) for run in runs]
    names = sorted({name for config in configs for name in config})
    rows = {name: [_text(config, name) for config in configs] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _text(config: Mapping[str, Any], name: str) -> str:
    # A section that is None has none of its fields.
    value = config.get(name)
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value)
