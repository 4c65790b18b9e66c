"""Sections: checked and completed with defaults, changed, and built as objects."""

import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vmoe_prc.config.errors import ConfigError, nearest
from vmoe_prc.config.options import OptionError
from vmoe_prc.config.registry import Registry
from vmoe_prc.config.schema import (
    REQUIRED,
    Field,
    Section,
    all_fields,
    declared_fields,
    describe_section,
    entry_fields,
    is_mapping,
    key_field,
)
from vmoe_prc.config.values import Text, complete_leaf, read_text

T = typing.TypeVar("T")


def fields_of(
    section: Section, values: Mapping[str, Any] = MappingProxyType({}), name: str = ""
) -> dict[str, Field]:
    """Returns the fields of a section, by name.

    Args:
      section: The section.
      values: Its values, one of which chooses an entry if the section is a registry.
      name: Its dotted name, for errors.

    Raises:
      ConfigError: If the choice is missing, or not registered.
    """
    if isinstance(section, Registry):
        value = values.get(section.key, REQUIRED)
        entry = complete_leaf(value, key_field(section), f"{name}.{section.key}")
        return entry_fields(section, entry)
    return all_fields(section)


def complete_section(
    values: Any,
    section: Section,
    name: str,
    moved: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Checks a group of fields and fills in its defaults.

    Args:
      values: The values given.
      section: The dataclass that declares the fields, or a registry of them.
      name: Dotted name of the group, for errors.
      moved: New names of fields by the names that other programs use.

    Raises:
      ConfigError: For the first field that is misspelt, missing, of another type, or out
        of its range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(name, values, f"expected {describe_section(section)}")
    fields = fields_of(section, values, name)
    for key, value in values.items():
        if key not in fields:
            full_name = f"{name}.{key}"
            if full_name in moved:
                raise ConfigError(full_name, value, f"has moved to {moved[full_name]}")
            allowed = f"unknown field; allowed: {', '.join(sorted(fields))}"
            raise ConfigError(full_name, value, allowed, nearest(str(key), fields))
    completed = {
        key: complete_value(values.get(key, REQUIRED), field, f"{name}.{key}", moved)
        for key, field in fields.items()
    }
    _check_together(completed, section, name)
    return completed


def _check_together(values: dict[str, Any], section: Section, name: str) -> None:
    """Calls the `__post_init__` of a section."""
    if isinstance(section, Registry):
        shared = {section.key, *(() if section.common is None else declared_fields(section.common))}
        section = section.options(values[section.key])
        values = {key: value for key, value in values.items() if key not in shared}
    if hasattr(section, "__post_init__"):
        try:
            build(section, values)
        except OptionError as error:
            raise ConfigError(f"{name}.{error.field}", error.value, error.expected) from None
        except ValueError as error:
            raise ConfigError(name, values, str(error)) from None


def build(section: type[T], values: Mapping[str, Any]) -> T:
    """Returns a section as an object, with the sections in it; sections of registries stay dicts.

    Args:
      section: The dataclass that declares it.
      values: Its completed values.
    """
    fields = fields_of(section)
    return section(**{key: _build_value(fields[key], value) for key, value in values.items()})


def _build_value(field: Field, value: Any) -> Any:
    if value is None or field.section is None or isinstance(field.section, Registry):
        return value
    if field.named:
        return {key: build(field.section, item) for key, item in value.items()}
    return build(field.section, value)


def complete_value(
    value: Any, field: Field, name: str, moved: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Checks the value of a field, or returns its default if it is `REQUIRED`."""
    if field.section is None:
        return complete_leaf(value, field, name)
    if value is REQUIRED:
        value = _default_section(field)
    if isinstance(value, Text):
        value = read_text(value, field.hint)
    if value is None and field.optional:
        return None
    if not field.named:
        return complete_section(_with_choice(value, field), field.section, name, moved)
    if not isinstance(value, Mapping):
        raise ConfigError(name, value, "expected sections by name")
    return {
        key: complete_section(item, field.section, f"{name}.{key}", moved)
        for key, item in value.items()
    }


def _default_section(field: Field) -> Any:
    """Returns the values that a section has if it is not given."""
    if field.named or isinstance(field.section, Registry):
        if callable(field.default):
            return field.default()
        return None if field.named or field.default is None else {}
    return None if field.default is None else {}


def _with_choice(value: Any, field: Field) -> Any:
    """Adds the entry that a section of a registry has by default, if it chooses none."""
    if isinstance(field.section, Registry) and callable(field.default):
        key = field.section.key
        default = typing.cast("Mapping[str, Any]", field.default())
        if isinstance(value, Mapping) and key not in value and key in default:
            return {key: default[key], **value}
    return value


def merge(base: Any, changes: Any, section: Section | None) -> Any:
    """Returns a section with changed fields, not yet checked; see `resolve.override`."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    fields = {}
    if section is not None:
        base = _without_old_options(base, changes, section)
        fields = _known_fields(section, {**base, **changes})
    merged = dict(base)
    for key, value in changes.items():
        field = fields.get(key)
        if field is not None and (field.named or _has_named_values(field)):
            merged[key] = _merge_named(base.get(key), value, field.section)
        else:
            inner = field.section or field.info.changes if field is not None else None
            merged[key] = merge(base.get(key), value, inner)
    return merged


def _has_named_values(field: Field) -> bool:
    """Whether a field is a mapping from names that the user chooses to values, no sections."""
    mapping = is_mapping(typing.get_origin(field.hint) or field.hint)
    return mapping and field.section is None and field.info.changes is None


def _merge_named(base: Any, changes: Any, section: Section | None) -> Any:
    """Merges sections or values under names; None takes one away."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    merged = {**base, **{key: merge(base.get(key), v, section) for key, v in changes.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _without_old_options(
    base: Mapping[str, Any], changes: Mapping[str, Any], section: Section
) -> Mapping[str, Any]:
    """Drops the options of an entry that `changes` replace by another entry."""
    if not isinstance(section, Registry):
        return base
    before = base.get(section.key)
    if changes.get(section.key, before) == before:
        return base
    old, new = _known_fields(section, base), _known_fields(section, {**base, **changes})
    dropped = old.keys() - new.keys()
    return {key: value for key, value in base.items() if key not in dropped}


def _known_fields(section: Section, values: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields of a section, none where its choice is wrong."""
    try:
        return fields_of(section, values)
    except ConfigError:
        return {}
