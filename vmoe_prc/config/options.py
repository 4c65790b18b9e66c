"""Options: typed fields with a default and one sentence, declared as dataclasses.

@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    global_norm: float | None = option(None, "Largest global norm of the gradients.", above=0)

Such a dataclass is a section of the configuration; `schema` documents the types.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

METADATA_KEY = "vmoe_prc"


class OptionError(ValueError):
    """An option that does not fit the others, for the `__post_init__` of an options dataclass.

    Args:
      field: Name of the option, such as 'hidden_size'.
      value: Its value.
      expected: The allowed values, in words.
    """

    def __init__(self, field: str, value: Any, expected: str):
        super().__init__(f"{field} = {value!r}: {expected}")
        self.field, self.value, self.expected = field, value, expected


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """Constraints and documentation of an option, in addition to its type.

    Attributes:
      help: One sentence for the reference.
      minimum: Smallest number allowed, also inside a tuple.
      maximum: Largest number allowed, also inside a tuple.
      above: Number that the value must exceed, also inside a tuple.
      choices: Values allowed: a sequence, or `module:NAME` of one; any value if None. With a
        `Registry` the field is a section: the name of an entry, and its options.
      form: The allowed values in words, where the type allows more; '' for none.
      changes: Section or registry that a mapping changes some fields of; None if it is no
        such mapping.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: Any = None
    form: str = ""
    changes: Any = None


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | Any | None = None,
    form: str = "",
    changes: Any = None,
) -> Any:
    """Declares a field of an options dataclass.

    Args:
      default: Default value; a type or function without arguments is called for it. The
        option is required if it is missing.
      help: One sentence for the reference.
      minimum: Smallest number allowed, also inside a tuple.
      maximum: Largest number allowed, also inside a tuple.
      above: Number that the value must exceed, also inside a tuple.
      choices: Values allowed; `module:NAME` of them, which is imported when they are needed;
        or a `Registry`: the field is then a section with the name of an entry under
        `registry.key`, and the options of that entry.
      form: The allowed values in words, where the type allows more.
      changes: Section or registry that the option, a mapping, changes some fields of.
    """
    info = OptionInfo(help, minimum, maximum, above, choices, form, changes)
    metadata = {METADATA_KEY: info}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
