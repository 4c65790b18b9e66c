"""Errors of a configuration, each one line that names the field and what is allowed."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from vmoe_prc.errors import UserError

MAX_SHOWN = 300


class ConfigError(UserError, ValueError):
    """A configuration value that cannot be used; its text is one line for the user.

    A bug in the user's own code is chained as its cause (`raise ... from error`), so that
    programs can show where the bug is.

    Args:
      field: Full dotted name of the field, such as `config.model.patch_size`.
      value: The offending value.
      expected: The allowed values, in words.
      suggestion: A near value that is allowed, if there is one.
    """

    def __init__(self, field: str, value: Any, expected: str, suggestion: str | None = None):
        hint = f"; did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{_shorten(field)} = {_shorten(_repr(value))}: {expected}{hint}")
        self.field, self.value = field, value
        self.expected, self.suggestion = expected, suggestion


class NotPreparedError(ConfigError):
    """A recipe depends on a data set that is not prepared.

    Args:
      field: See `ConfigError`.
      value: See `ConfigError`.
      expected: See `ConfigError`.
      prepare: Prepares the data set.
    """

    def __init__(self, field: str, value: Any, expected: str, prepare: Callable[[], object]):
        super().__init__(field, value, expected)
        self.prepare = prepare


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed word that `word` most likely misspells, or None."""
    matches = difflib.get_close_matches(word[:MAX_SHOWN], list(allowed), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_regex(field: str, pattern: Any) -> None:
    """Raises ConfigError if the value of a field is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(field, pattern, f"not a regular expression ({error})") from None


def _repr(value: Any) -> str:
    try:
        return " ".join(repr(value).splitlines())
    except ValueError:  # Python refuses to print an int of more than 4,300 digits.
        return f"an int of {value.bit_length()} bits"


def _shorten(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]} ({len(text)} characters)"
