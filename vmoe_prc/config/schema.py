"""The engine of the schema: checks values against dataclasses, fills in defaults, merges.

A *section* is a dataclass whose fields are declared by `option`. The type of a field says
what it may be:

* a value: `int`, `float`, `bool`, `str`, `tuple[...]` (or `Sequence[...]`), `Mapping[...]`, and
  unions of these;
* a section: another such dataclass, or `Section | None` if it may be switched off;
* named sections: `Mapping[str, Section]`, under names that the user chooses.

A field whose choices are a `Registry` is a section, too: the name of an entry under
`registry.key`, and the options of that entry, such as the options of the router that `router.name`
chooses. A section with a static method `more` has the fields of the dataclasses that it
returns as well. The `__post_init__` of a section checks its fields against each other: an
`OptionError` or ValueError becomes one line.

Values stay plain: configurations are nested dicts in the vocabulary of V-MoE. We weighed
libraries: draccus and fiddle build objects of the dataclasses and would replace get_config()
files and flags; pydantic validates, but has neither did-you-mean, nor options by registered
name, nor changes that switch a variant. What is needed here is smaller than an adapter.
"""

import collections.abc
import dataclasses
import functools
import importlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from vmoe_prc.config.options import METADATA_KEY, OptionInfo
from vmoe_prc.config.registry import Registry

Section = type | Registry
REQUIRED = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a section, from its declaration.

    Attributes:
      hint: Its type.
      default: Its default, `REQUIRED` if it has none.
      info: The declaration beyond the type.
      section: The section that it is, or that the sections under its names are: a dataclass,
        or a registry of them; None if it is a value.
      named: Whether it holds sections under names that the user chooses.
      optional: Whether it may be None.
    """

    hint: Any
    default: Any
    info: OptionInfo
    section: "Section | None"
    named: bool
    optional: bool

    @classmethod
    def of_section(cls, section: "Section", help: str) -> "Field":
        """Returns a field that is a section."""
        return cls(Mapping[str, Any], dict, OptionInfo(help), section, named=False, optional=False)

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Values allowed, None if there is no list of them."""
        choices = self.info.choices
        if isinstance(choices, str):
            module, _, name = choices.partition(":")
            choices = getattr(importlib.import_module(module), name)
        return None if choices is None else tuple(choices)

    def describe(self) -> str:
        """Returns the allowed values in words, such as 'float from 0 to 1'."""
        if self.section is not None:
            return "sections by name" if self.named else describe_section(self.section)
        if self.choices is not None:
            return f"one of {', '.join(str(value) for value in self.choices)}"
        info = self.info
        text = info.form or describe_type(self.hint)
        if info.minimum is not None and info.maximum is not None:
            return f"{text} from {_number(info.minimum)} to {_number(info.maximum)}"
        if info.minimum is not None:
            return f"{text} of at least {_number(info.minimum)}"
        if info.maximum is not None:
            return f"{text} of at most {_number(info.maximum)}"
        return text if info.above is None else f"{text} above {_number(info.above)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def describe_section(section: Section) -> str:
    """Returns what a section has to be, in words."""
    if isinstance(section, Registry):
        return f"a group of fields: {section.key} (one of {', '.join(section)}) and its options"
    return "a group of fields"


def describe_type(hint: Any) -> str:
    """Returns a type in words, such as 'int or None' or 'tuple of str'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(member) for member in arguments)
    if is_sequence(hint) and not arguments:
        return "tuple"
    if is_sequence(hint) and (origin is not tuple or arguments[-1] is Ellipsis):
        return f"tuple of {describe_type(arguments[0])}"
    if origin is typing.Literal:
        return " or ".join(repr(word) for word in arguments)
    if origin is tuple:
        return f"({', '.join(describe_type(member) for member in arguments)})"
    if hint is Any:
        return "value"
    if hint is type(None):
        return "None"
    return "mapping" if is_mapping(origin or hint) else hint.__name__


@functools.cache
def declared_fields(section: type) -> dict[str, Field]:
    """Returns the fields of a dataclass, by name."""
    hints = typing.get_type_hints(section)
    return {
        field.name: _field(hints[field.name], field)
        for field in dataclasses.fields(section)
        if METADATA_KEY in field.metadata
    }


def _field(hint: Any, field: dataclasses.Field) -> Field:
    info = field.metadata[METADATA_KEY]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if union else (hint,)
    [first, *_] = [member for member in members if member is not type(None)]
    arguments = typing.get_args(first)
    named = bool(arguments) and is_mapping(typing.get_origin(first))
    named = named and dataclasses.is_dataclass(arguments[1])
    declared = arguments[1] if named else first
    section: Section | None = declared if isinstance(declared, type) else None
    if isinstance(info.choices, Registry):
        section = info.choices
        named = bool(arguments) and is_mapping(typing.get_origin(arguments[-1]))
    elif not dataclasses.is_dataclass(section):
        section = None
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory
    return Field(hint, default, info, section, named, optional=type(None) in members)


def is_mapping(hint: Any) -> bool:
    """Whether a type without its parameters is a mapping type."""
    return hint in (dict, collections.abc.Mapping)


def is_sequence(hint: Any) -> bool:
    """Whether a type is a tuple type."""
    return (typing.get_origin(hint) or hint) in (tuple, collections.abc.Sequence)


def all_fields(section: type) -> dict[str, Field]:
    """Returns the fields of a section and of its method `more`, by name."""
    fields = dict(declared_fields(section))
    for more in section.more() if hasattr(section, "more") else ():
        fields |= declared_fields(more)
    return fields


def entry_fields(registry: Registry, entry: str) -> dict[str, Field]:
    """Returns the fields of a section of a registry that chooses an entry."""
    common = {} if registry.common is None else all_fields(registry.common)
    return {registry.key: key_field(registry), **common, **all_fields(registry.options(entry))}


def key_field(registry: Registry) -> Field:
    """Returns the field that names an entry of a registry."""
    info = OptionInfo(f"Name of the {registry.kind}.", choices=registry)
    return Field(str, REQUIRED, info, section=None, named=False, optional=False)
