"""Fields set on the command line: `--config.optimizer.name=sgd --config.mixup=None`.

Values stay text until the schema gives them a type. So a flag can also set the
fields of a section that the config file leaves None, and the options of a variant that it does
not choose, which `ml_collections.config_flags` cannot.
"""

import re
from collections.abc import Sequence
from typing import Any

from vmoe_prc.config.errors import ConfigError
from vmoe_prc.config.values import Text

_FLAG = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<value>.*))?", re.DOTALL)


def split_config_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes the flags that set fields from a command line.

    A field may be set as `--config.seed=1` or `--config.seed 1`, and a bool also as
    `--config.shard_dense_params` or `--noconfig.shard_dense_params`. The last of several
    flags for one field counts.

    Args:
      arguments: The command line.

    Returns:
      The other arguments, and the changes for `override`.

    Raises:
      ConfigError: If a flag names no field.
    """
    others, changes = [], {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument == "--":
            others += [argument, *remaining]
            break
        match = _FLAG.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        value = match["value"]
        if match["no"]:
            value = "false"
        elif value is None:
            is_value = bool(remaining) and not remaining[0].startswith("--")
            value = remaining.pop(0) if is_value else "true"
        _set(changes, match["path"], value, argument)
    return others, changes


def _set(changes: dict[str, Any], path: str, value: str, argument: str) -> None:
    *sections, name = path.split(".")
    if not all((*sections, name)):
        raise ConfigError("command line", argument, "expected --config.section.field=value")
    for key in sections:
        if not isinstance(changes.get(key), dict):
            changes[key] = {}
        changes = changes[key]
    changes[name] = None if value == "None" else Text(value)
