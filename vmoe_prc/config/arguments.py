"""Arguments of config files: the part of `--config=FILE:k=1,prc=off` after the colon."""

import re
from typing import Any

import ml_collections

from vmoe_prc.config.errors import ConfigError, nearest

# A value with a comma is put in quotes: dir='my, photos'.
_ITEM = re.compile(r"""\s*(?P<name>[^=,]*?)\s*(=(?P<value>'[^']*'|"[^"]*"|[^,]*))?(,|$)""")
_WORDS = {"on": True, "true": True, "off": False, "false": False}


def parse_arguments(text: str, **defaults: Any) -> ml_collections.ConfigDict:
    """Reads the arguments of `--config=configs/x.py:k=1,prc=off`.

    Args:
      text: The part after the colon, possibly empty; a value with a comma is quoted,
        as in `dir='my, photos'`.
      **defaults: The arguments and their defaults, whose types they keep; a bool is
        written on, off, true or false.

    Raises:
      ConfigError: If an argument is unknown, or not of its type.
    """
    arguments = dict(defaults)
    for item in _items(text):
        name, value = item["name"], (item["value"] or "").strip()
        field = f"config argument {name!r}"
        if name not in defaults:
            allowed = f"unknown; allowed: {', '.join(defaults)}"
            if "=" not in item[0]:
                allowed += "; put a value with a comma in quotes"
            raise ConfigError(field, value, allowed, nearest(name.lower(), defaults))
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        arguments[name] = _parse_value(field, value, type(defaults[name]))
    return ml_collections.ConfigDict(arguments)


def _items(text: str) -> list[re.Match[str]]:
    items, position = [], 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None:
            raise ConfigError("config arguments", text, "expected name=value,name=value")
        items.append(item)
        position = item.end()
    return [item for item in items if item["name"] or item["value"]]


def _parse_value(field: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in _WORDS:
            raise ConfigError(field, value, f"expected one of {', '.join(_WORDS)}")
        return _WORDS[value.lower()]
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(field, value, f"expected {kind.__name__}") from None
