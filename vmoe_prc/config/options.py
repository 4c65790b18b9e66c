"""Options: typed fields with a default and one sentence, declared as dataclasses.

@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    global_norm: float | None = option(None, "Largest global norm of the gradients.", above=0)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

METADATA_KEY = "vmoe_prc"


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What the type of an option does not say.

    Attributes:
      help: One sentence for the reference.
      minimum: Smallest number allowed.
      maximum: Largest number allowed.
      above: Number that the value must exceed.
      choices: Values allowed; a `Registry` allows its names. Any value if None.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: Any = None


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | Any | None = None,
) -> Any:
    """Declares a field of an options dataclass.

    Args:
      default: Default value; a type or function without arguments is called for it. The
        option is required if it is missing.
      help: One sentence for the reference.
      minimum: Smallest number allowed.
      maximum: Largest number allowed.
      above: Number that the value must exceed.
      choices: Values allowed, or a `Registry`, whose names are allowed.
    """
    info = OptionInfo(help, minimum, maximum, above, choices)
    metadata = {METADATA_KEY: info}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
