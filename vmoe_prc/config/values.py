"""Values of fields: what their types allow, and texts of the command line read as them."""

import ast
import math
import numbers
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

import ml_collections
from ml_collections.config_dict.config_dict import FieldReference

from vmoe_prc.config.errors import ConfigError, nearest
from vmoe_prc.config.options import OptionInfo
from vmoe_prc.config.schema import REQUIRED, Field, is_mapping, is_sequence

MAX_STRING = 10_000
_WORDS = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


class Text(str):
    """A value from the command line, which is read as the type of its field demands."""

    __slots__ = ()


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings under their full names, joined by dots."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {
        name: value
        for key, item in config.items()
        for name, value in flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }


def plain(value: Any) -> Any:
    """Copies ConfigDicts to dicts and lists to tuples, so that nothing else can change them."""
    if isinstance(value, FieldReference):
        value = value.get()
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    return value


def complete_leaf(value: Any, field: Field, name: str) -> Any:
    """Checks the value of a field that is no section, or returns its default if `REQUIRED`.

    Raises:
      ConfigError: If it is missing, of another type, or out of its range.
    """
    if value is REQUIRED:
        if field.default is REQUIRED:
            raise ConfigError(name, None, f"missing; expected {field.describe()}")
        default = field.default
        return default() if callable(default) else default
    value = read_text(value, field.hint)
    near = None
    try:
        value = _convert(value, field.hint)
        choices = field.choices
        if choices is not None and value not in choices:
            if isinstance(value, str):
                near = nearest(value, [word for word in choices if isinstance(word, str)])
            raise _MismatchError
        _check_range(value, field.info)
    except _MismatchError as error:
        expected = str(error) or f"expected {field.describe()}"
        raise ConfigError(name, value, expected, near) from None
    return value


class _MismatchError(ValueError):
    """A value that its field cannot have; with a text where the type does not explain it."""


def _convert(value: Any, hint: Any) -> Any:
    """Returns a value as its type wants it: an int as a float, NumPy's numbers as Python's."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (hint is type(None) and value is None):
        return value
    if origin is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    if origin in (typing.Union, UnionType):
        return _convert_to_any(value, arguments)
    if is_sequence(hint):
        return _convert_tuple(value, arguments, any_length=origin is not tuple)
    if is_mapping(origin or hint) and isinstance(value, Mapping):
        item = arguments[1] if arguments else Any
        return {key: _convert(each, item) for key, each in value.items()}
    if hint is str and isinstance(value, str):
        if len(value) > MAX_STRING:
            raise _MismatchError(f"expected at most {MAX_STRING} characters, not {len(value)}")
        return value
    if hint is bool and isinstance(value, bool):
        return value
    # A bool is an int to Python, but `seed = True` is a mistake.
    if isinstance(value, bool):
        raise _MismatchError
    if hint is int and isinstance(value, numbers.Integral):
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise _MismatchError("expected an int of at most 64 bits")
        return number
    if hint is float and isinstance(value, numbers.Real):
        return _finite(value)
    raise _MismatchError


def _convert_to_any(value: Any, hints: tuple[Any, ...]) -> Any:
    reason = ""
    for hint in hints:
        try:
            return _convert(value, hint)
        except _MismatchError as error:
            reason = reason or str(error)
    raise _MismatchError(reason)


def _convert_tuple(value: Any, hints: tuple[Any, ...], any_length: bool) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise _MismatchError
    if not hints:
        return value
    if any_length or hints[-1] is Ellipsis:
        return tuple(_convert(item, hints[0]) for item in value)
    if len(value) != len(hints):
        raise _MismatchError
    return tuple(_convert(item, hint) for item, hint in zip(value, hints, strict=True))


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _MismatchError("expected a finite number")
    return number


def _check_range(value: Any, info: OptionInfo) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, tuple):
            _check_range(item, info)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            too_small = info.minimum is not None and item < info.minimum
            too_large = info.maximum is not None and item > info.maximum
            if too_small or too_large or (info.above is not None and item <= info.above):
                raise _MismatchError


def read_text(value: Any, hint: Any) -> Any:
    """Reads a value of the command line, or those in a mapping, as the type of its field.

    A text that cannot be read, and any other value, stays as it is.
    """
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    members = typing.get_args(hint) if union else (hint,)
    kinds = {member for member in members if member is not type(None)}
    if isinstance(value, Mapping):
        items = [typing.get_args(kind) for kind in kinds if is_mapping(typing.get_origin(kind))]
        item = items[0][1] if items else Any
        return {key: read_text(each, item) for key, each in value.items()}
    if not isinstance(value, Text):
        return value
    if value == "None" and type(None) in members:
        return None
    if kinds == {str}:
        return str(value)
    if kinds == {bool}:
        return _WORDS.get(value.lower(), str(value))
    try:
        if kinds == {float}:
            return float(value)
        read = plain(ast.literal_eval(value.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return str(value)
    if any(kind is str or typing.get_origin(kind) is typing.Literal for kind in kinds):
        try:
            _convert(read, hint)
        except _MismatchError:
            return str(value)
    return read
