"""The reference of the configuration: `docs/CONFIG.md` and `--explain`, from the schema."""

from collections.abc import Iterator, Mapping
from typing import Any

from vmoe_prc.config.derived import Config
from vmoe_prc.config.errors import ConfigError, nearest
from vmoe_prc.config.fields import Config as Fields
from vmoe_prc.config.registry import Registry
from vmoe_prc.config.schema import REQUIRED, Field, Section, all_fields, entry_fields
from vmoe_prc.config.sections import fields_of
from vmoe_prc.config.values import plain

HEADER = """# Configuration

<!-- Generated: python -m vmoe_prc.config --markdown > docs/CONFIG.md -->

Every field of a configuration, with its type, default and meaning. A config file is a Python
file whose `get_config()` returns these fields; each can be changed on the command line:

```bash
python -m vmoe_prc.main --config=configs/digits_prc.py:k=1 --config.seed=3 \\
    --config.optimizer.name=sgd --config.optimizer.momentum=0.9 --config.consistency=None
```

`None` switches an optional section off, a field of it switches it on; a section that chooses
another entry by its name loses the options of the old one. `--explain=optimizer.gradient_clip`
prints fields with their values in a configuration. A module that registers a router, loss or
evaluator of your own is named in `config.imports`, and its options are fields like these.
"""


def markdown() -> str:
    """Returns `docs/CONFIG.md`."""
    return "\n".join([HEADER, *_sections("config", Fields)])


def _sections(name: str, section: Section, intro: str = "") -> Iterator[str]:
    """Yields the text of a section and of the sections in it."""
    yield f"## `{name}`\n"
    if intro or not isinstance(section, Registry):
        yield f"{intro or section.__doc__}\n"
    if isinstance(section, Registry):
        yield from _registry_tables(section)
        fields = {k: f for entry in section for k, f in entry_fields(section, entry).items()}
    else:
        fields = all_fields(section)
        yield from _table(fields)
    for key, field in fields.items():
        if field.section is not None:
            inner = f"{name}.{key}.NAME" if field.named else f"{name}.{key}"
            yield from _sections(inner, field.section, field.info.help)


def _registry_tables(registry: Registry) -> Iterator[str]:
    """Yields a table of the fields that all entries have, then one per entry for the others."""
    by_entry = {entry: entry_fields(registry, entry) for entry in registry}
    shared = {
        key: field
        for key, field in next(iter(by_entry.values())).items()
        if all(fields.get(key) == field for fields in by_entry.values())
    }
    yield from _table(shared)
    for entry, fields in by_entry.items():
        own = {key: field for key, field in fields.items() if key not in shared}
        if own:
            yield f"With `{registry.key} = {entry}`:\n"
            yield from _table(own)


def _table(fields: Mapping[str, Field]) -> Iterator[str]:
    if not fields:
        return
    yield "| field | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, field in fields.items():
        cells = (f"`{key}`", field.describe(), describe_default(field), field.info.help)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def describe_default(field: Field) -> str:
    """Returns the default of a field in words."""
    if field.section is not None:
        off = field.default is None
        return "None" if off else "required" if field.default is REQUIRED else "see below"
    if field.default is REQUIRED:
        return "required"
    default = field.default() if callable(field.default) else field.default
    return f"`{default!r}`"


def explain(path: str, config: Config) -> str:
    """Describes a field, or all fields of a section.

    Args:
      path: Dotted name, such as 'optimizer.gradient_clip'; 'config' is all of it.
      config: The completed configuration.

    Raises:
      ConfigError: If there is no such field.
    """
    keys = path.removeprefix("config").strip(".")
    root = Field.of_section(Fields, "A configuration.")
    field, value, name = root, plain(config), "config"
    for key in keys.split(".") if keys else ():
        fields = _inner_fields(field, value)
        if key not in fields:
            allowed = f"unknown field; allowed: {', '.join(sorted(fields))}"
            raise ConfigError("--explain", path, allowed, nearest(key, fields))
        name = f"{name}.{key}"
        field, value = fields[key], value.get(key) if isinstance(value, Mapping) else None
    return "\n".join(_explain(name, field, value))


def _inner_fields(field: Field, value: Any) -> dict[str, Field]:
    """Returns the fields of a section, or of the registry's entry that is chosen."""
    values = value if isinstance(value, Mapping) else {}
    if field.section is None:
        return {}
    if field.named:
        one = Field.of_section(field.section, field.info.help)
        return dict.fromkeys(values or ("NAME",), one)
    if isinstance(field.section, Registry) and field.section.key not in values:
        entry = next(iter(field.section))
        return entry_fields(field.section, entry)
    return fields_of(field.section, values)


def _explain(name: str, field: Field, value: Any) -> Iterator[str]:
    if field.section is None:
        yield f"{name} = {value!r}"
        yield f"    {field.describe()}; {_default_in_words(field)}"
        yield f"    {field.info.help}"
        return
    off = not isinstance(value, Mapping)
    yield f"{name}{' = None' if off else ''}: {field.info.help or field.section.__doc__}"
    for key, inner in _inner_fields(field, value).items():
        yield from _explain(f"{name}.{key}", inner, None if off else value.get(key))


def _default_in_words(field: Field) -> str:
    default = describe_default(field)
    return default if default == "required" else f"default {default.strip('`')}"
