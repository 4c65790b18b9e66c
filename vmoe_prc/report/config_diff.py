"""Fields in which configurations differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_prc.config import flatten

# Value of a field that a configuration lacks: a section that is None has no fields.
MISSING = object()


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Compares configurations.

    Args:
      configs: Configurations, nested or flat.

    Returns:
      By dotted name, in alphabetical order, each field that is not the same in all
      configurations: its value in each of them, or `MISSING`.
    """
    flat = [flatten(config) for config in configs]
    names = sorted({name for config in flat for name in config})
    values = {name: [config.get(name, MISSING) for config in flat] for name in names}
    return {name: row for name, row in values.items() if len(set(map(value_text, row))) > 1}


def value_text(value: Any, missing: str = "-") -> str:
    """Returns the value of a field as text: `missing` for None and `MISSING`."""
    if value is None or value is MISSING:
        return missing
    return value if isinstance(value, str) else json.dumps(value, default=list)
