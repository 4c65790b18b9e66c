"""Examples that cannot be read or decoded: what replaces them, and how many there may be."""

from collections.abc import Sequence

from absl import logging

from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.preprocess import Batch, Preprocess
from vmoe_prc.data.split import Split
from vmoe_prc.errors import RunError

_MOST_NAMED = 10


class BadExamples:
    """The bad examples of a split that this process has met; each counts once.

    Args:
      split: The split.
      preprocess: Its preprocessing, which refuses bad examples.
    """

    def __init__(self, split: Split, preprocess: Preprocess):
        self._split, self._preprocess = split, preprocess
        self._causes: dict[int, str] = {}
        self._replacement: bytes | None = None

    def add(self, numbers: Sequence[int], positions: Sequence[int]) -> None:
        """Counts examples, and logs those that are new.

        Args:
          numbers: Their numbers in the split.
          positions: Their positions in the stream.

        Raises:
          RunError: If there are more than `max_bad_examples`.
        """
        for number, position in zip(numbers, positions, strict=True):
            if number not in self._causes:
                cause = self._cause(self._record(number), position) or "readable on retry"
                self._causes[number] = f"{self._split.records.place(number)}: {cause}"
                found = (self._split.name, len(self._causes), self._causes[number])
                logging.warning("%s: bad example %d is left out, %s", *found)
        limit = self._split.config.max_bad_examples
        if len(self._causes) > limit:
            named = "; ".join(list(self._causes.values())[:_MOST_NAMED])
            raise RunError(
                f"{self._split.name} has {len(self._causes)} bad examples, more than "
                f"max_bad_examples = {limit}: {named}"
            )

    def replacement(self, position: int) -> Batch:
        """Makes the row that replaces a bad example: of the first good example of the split.

        Args:
          position: Position of the bad example, which decides the randomness.
        """
        if self._replacement is None:
            self._replacement = self._first_good()
        return self._preprocess.one(position, self._replacement)

    def _first_good(self) -> bytes:
        for number in range(self._split.num_examples):
            record = self._record(number)
            if self._cause(record, 0) is None:
                return record
        raise RunError(f"{self._split.name} has no good example")

    def _record(self, number: int) -> bytes:
        return self._split.records.read([number])[0]

    def _cause(self, record: bytes, position: int) -> str | None:
        """Returns what is wrong with a record, or None."""
        try:
            self._preprocess.one(position, record)
        except BadExampleError as error:
            return " ".join(str(error).split())[:200]
        return None
