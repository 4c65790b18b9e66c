"""The order of a stream of examples: position -> record, without state.

Position p of a shuffled stream is example i of epoch e, where e, i = divmod(p, N), and its record
is a permutation of i that the seed and e fix. Any position can be looked up at any time, so a run
resumes anywhere at once, and a process looks up only its own positions.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

# Rounds of the Feistel network: with 4 its outputs pass for random (Luby and Rackoff, 1988); small
# domains get some to spare.
ROUNDS = 8
# Positions that are looked up together: NumPy's cost per call is shared by them.
WINDOW = 1024

_NONE = np.zeros(0, np.int64)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclasses.dataclass(frozen=True)
class Order:
    """Numbers of the records of a stream.

    Attributes:
      num_examples: Examples of an epoch, N.
      seed: Seed of the order.
      shuffle: Whether each epoch is shuffled; else each has the order of the files.
      block: Adjacent records that stay together. With 1, each epoch is a permutation of single
        records. With more, blocks are permuted, and the records of a block among themselves: a
        process reads its rows in a few requests, but neighbours of the files always meet in a
        batch. Where the blocks begin differs from epoch to epoch.
    """

    num_examples: int
    seed: int = 0
    shuffle: bool = True
    block: int = 1

    def numbers(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Returns the number in the split of the example at each position of the stream."""
        epochs, indices = np.divmod(positions, self.num_examples)
        if not self.shuffle:
            return indices
        result = np.empty_like(indices)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._shuffled(int(epoch), indices[chosen].astype(np.uint64))
        return result

    def _shuffled(self, epoch: int, indices: UInt64[np.ndarray, " n"]) -> np.ndarray:
        keys = _keys(self.seed, epoch)
        if self.block == 1:
            return permute(indices, self.num_examples, keys[0])
        size = np.uint64(min(self.block, self.num_examples))
        blocks, offsets = np.divmod(indices, size)
        num_blocks = self.num_examples // int(size)
        # What is left over after the last whole block stays at the end of the epoch.
        whole = blocks < num_blocks
        blocks[whole] = permute(blocks[whole], num_blocks, keys[0])
        offsets[whole] = permute(offsets[whole], int(size), keys[1], tweaks=blocks[whole])
        shift = int(keys[2][0]) % self.num_examples
        return (blocks * size + offsets + np.uint64(shift)) % np.uint64(self.num_examples)


def permute(
    indices: UInt64[np.ndarray, " n"],
    size: int,
    keys: UInt64[np.ndarray, " rounds"],
    tweaks: UInt64[np.ndarray, " n"] | int = 0,
) -> UInt64[np.ndarray, " n"]:
    """Permutes range(size): a Feistel network over the next power of 4, with cycle walking.

    Args:
      indices: Numbers below `size`.
      size: Length of the permuted range.
      keys: One random word per round; they choose the permutation.
      tweaks: Choose a different permutation for each index, in addition to the keys.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(indices, half, keys, np.asarray(tweaks, np.uint64))
    # A number beyond the range is encrypted again until it is within: since the network is a
    # bijection, this walks along its cycle and ends, after at most 4 rounds on average.
    while (outside := result >= size).any():
        part = tweaks[outside] if isinstance(tweaks, np.ndarray) else tweaks
        result[outside] = _feistel(result[outside], half, keys, np.asarray(part, np.uint64))
    return result


def _feistel(x: np.ndarray, half: int, keys: np.ndarray, tweaks: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    tweaks = tweaks * _MULTIPLIERS[0]
    for key in keys:
        left, right = right, left ^ (_mix((right ^ key) + tweaks) & mask)
    return (left << bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Hashes 64-bit words: the finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> UInt64[np.ndarray, "3 rounds"]:
    # Raw words of Philox, which NumPy never changes, unlike the methods of Generator.
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64))
    return words.random_raw(3 * ROUNDS).reshape(3, ROUNDS)


class Rows:
    """The rows of the global batches that one process makes, in chunks.

    Row r of the batch of step k is position k * B + r of the stream. Process p of P makes rows
    p * B / P to (p + 1) * B / P - 1 of each step, which are its rows k * B / P and following.

    Args:
      order: The order of the stream.
      batch_size: B, rows of a global batch, a multiple of `process_count`.
      start_step: Step of the first batch.
      process_index: p.
      process_count: P.
      end: Length of the stream; None if it has no end.

    Attributes:
      rows_per_step: B / P.
      start: Number of its first row.
      stop: Number after its last row, None if the stream has no end.
    """

    def __init__(
        self,
        order: Order,
        batch_size: int,
        *,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        end: int | None = None,
    ):
        self._order, self._batch_size = order, batch_size
        self.rows_per_step = batch_size // process_count
        self._first = process_index * self.rows_per_step
        self.start, self.stop = start_step * self.rows_per_step, None
        if end is not None:
            steps, rest = divmod(end, batch_size)
            last = min(max(rest - self._first, 0), self.rows_per_step)
            self.stop = steps * self.rows_per_step + last
        self._window = functools.lru_cache(maxsize=16)(self._look_up)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_window"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._window = functools.lru_cache(maxsize=16)(self._look_up)

    def chunk(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns positions in the stream, and numbers in the split, of a chunk of rows.

        Args:
          index: Rows index * size to (index + 1) * size - 1, if they are between start and stop.
          size: Largest number of rows.
        """
        begin, end = max(index * size, self.start), (index + 1) * size
        if self.stop is not None:
            end = min(end, self.stop)
        parts = []
        for window in range(begin // WINDOW, -(-end // WINDOW)):
            first = window * WINDOW
            positions, numbers = self._window(window)
            part = slice(max(begin - first, 0), end - first)
            parts.append((positions[part], numbers[part]))
        if len(parts) == 1:
            return parts[0]
        positions, numbers = zip(*parts, strict=True) if parts else ((), ())
        return np.concatenate(positions or [_NONE]), np.concatenate(numbers or [_NONE])

    def _look_up(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(window * WINDOW, (window + 1) * WINDOW)
        steps, offsets = np.divmod(rows, self.rows_per_step)
        positions = steps * self._batch_size + self._first + offsets
        return positions, self._order.numbers(positions)
