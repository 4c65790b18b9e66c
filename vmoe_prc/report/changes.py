"""Changes of a configuration in the middle of a run, as it was resumed."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from vmoe_prc.config import flatten
from vmoe_prc.report.config_diff import MISSING, value_text
from vmoe_prc.workdir.history import Stretch

# Fields that a text lists of each change.
_MOST_FIELDS = 5


class Change(NamedTuple):
    """A field that was changed.

    Attributes:
      after_step: The last step with the old value.
      field: Its dotted name.
      before: The old value, `MISSING` if there was none.
      after: The new value.
    """

    after_step: int
    field: str
    before: Any
    after: Any


def config_changes(history: Sequence[Stretch], ignored: frozenset[str]) -> list[Change]:
    """Lists the fields in which successive configurations of a run differ.

    Args:
      history: The configurations of a run, see `workdir.history.read_history`.
      ignored: Fields that change nothing of the results.
    """
    changes = []
    for earlier, later in itertools.pairwise(history):
        before, after = flatten(earlier.config), flatten(later.config)
        for field in sorted((before.keys() | after.keys()) - ignored):
            values = before.get(field, MISSING), after.get(field, MISSING)
            if value_text(values[0]) != value_text(values[1]):
                changes.append(Change(later.after_step, field, *values))
    return changes


def changes_text(changes: Sequence[Change]) -> str:
    """Says in one line how a configuration changed."""
    parts = []
    for step in dict.fromkeys(change.after_step for change in changes):
        fields = [
            f"{c.field} was {value_text(c.before)}, then {value_text(c.after)}"
            for c in changes
            if c.after_step == step
        ]
        more = f"; {len(fields) - _MOST_FIELDS} more" if len(fields) > _MOST_FIELDS else ""
        parts.append(f"after step {step:,}: {'; '.join(fields[:_MOST_FIELDS])}{more}")
    return "its configuration changed " + ", and ".join(parts)
