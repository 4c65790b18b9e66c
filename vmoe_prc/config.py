"""What a configuration may say: its errors, its schema and the checks across fields."""

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A configuration value that cannot be used; its text is one line for the user.

    Args:
      field: Full dotted name of the field, such as `config.model.patch_size`.
      value: The offending value.
      expected: What is allowed there, in words.
      suggestion: A near value that is allowed, if there is one.
    """

    def __init__(self, field: str, value: Any, expected: str, suggestion: str | None = None):
        hint = f"; did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{field} = {value!r}: {expected}{hint}")
        self.field, self.value = field, value


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed word that `word` most likely misspells, or None."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return matches[0] if matches else None
