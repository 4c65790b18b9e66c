"""Examples that cannot be read or decoded: what takes their place, and how many there may be."""

from collections.abc import Sequence

import ml_collections
from absl import logging

from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.preprocess import Batch, Preprocess
from vmoe_prc.data.source import Examples
from vmoe_prc.errors import RunError

_MOST_NAMED = 10


class BadExamples:
    """The bad examples of a split that this process has met; each counts once.

    Args:
      config: The section of `config.dataset`.
      split: Its examples.
      preprocess: What fails for a bad one.
    """

    def __init__(self, config: ml_collections.ConfigDict, split: Examples, preprocess: Preprocess):
        self._name = f"{config.name} ({config.split})"
        self._limit = config.max_bad_examples
        self._split, self._preprocess = split, preprocess
        self._causes: dict[int, str] = {}
        self._stand_in: bytes | None = None

    def add(self, numbers: Sequence[int], positions: Sequence[int]) -> None:
        """Counts examples, and names those that are new in the log.

        Args:
          numbers: Their numbers in the split.
          positions: Their positions in the stream.

        Raises:
          RunError: If there are more than `max_bad_examples`.
        """
        for number, position in zip(numbers, positions, strict=True):
            if number not in self._causes:
                cause = self._cause(self._split.record(number), position) or "now it is good"
                self._causes[number] = f"{self._split.where(number)}: {cause}"
                found = (self._name, len(self._causes), self._causes[number])
                logging.warning("%s: bad example %d is left out, %s", *found)
        if len(self._causes) > self._limit:
            named = "; ".join(list(self._causes.values())[:_MOST_NAMED])
            raise RunError(
                f"{self._name} has {len(self._causes)} bad examples, more than "
                f"max_bad_examples = {self._limit}: {named}"
            )

    def stand_in(self, position: int) -> Batch:
        """Makes what takes the place of a bad example: the first good one of the split.

        Args:
          position: The position, whose randomness it gets.
        """
        if self._stand_in is None:
            self._stand_in = self._first_good()
        return self._preprocess.one(position, self._stand_in)

    def _first_good(self) -> bytes:
        for number in range(self._split.num_examples):
            record = self._split.record(number)
            if self._cause(record, 0) is None:
                return record
        raise RunError(f"{self._name} has no good example")

    def _cause(self, record: bytes, position: int) -> str | None:
        """Returns what is wrong with a record, None if nothing is."""
        try:
            self._preprocess.one(position, record)
        except BadExampleError as error:
            return " ".join(str(error).split())[:200]
        return None
