"""From serialised examples to arrays for a model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from vmoe_prc.config import ConfigError
from vmoe_prc.data.ops import registry
from vmoe_prc.data.source import Examples

Batch = dict[str, np.ndarray]
Spec = dict[str, jax.ShapeDtypeStruct]

# Bytes to whose multiples TensorFlow aligns its tensors.
ALIGNMENT = 64
# Of the blank images that show what preprocessing makes of an image: larger than any crop.
BLANK_SIZES = (2003, 3001), (3001, 2003)


class Preprocess:
    """The preprocessing of a split, with the randomness of a seed.

    Args:
      config: The section of `config.dataset`.
      split: Its examples.
      seed: Seed of the augmentations.
      field: Name of the section, for errors.

    Attributes:
      spec: Shapes and dtypes of the entries of an example.

    Raises:
      ConfigError: If the preprocessing does not fit the examples.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        split: Examples,
        seed: int,
        field: str = "config.dataset",
    ):
        self._ops = registry.build(config.process, f"{field}.process")
        self._split, self._seed = split, seed
        try:
            self.spec: Spec = self._find_spec()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            message = " ".join(str(error).split())
            raise ConfigError(f"{field}.process", config.process, message) from None

    def one(self, position: int, record: bytes) -> Batch:
        """Makes one example, without an axis for the batch.

        Args:
          position: Its position in the stream, which decides its randomness.
          record: The serialised example.

        Raises:
          BadExampleError: If it cannot be read, decoded or cropped.
        """
        [example] = self._examples([position], [record])
        if isinstance(example, registry.BadExampleError):
            raise example
        return {
            key: np.asarray(registry.computed(example[key]), x.dtype)
            for key, x in self.spec.items()
        }

    def rows(self, positions: Sequence[int], records: Sequence[bytes]) -> tuple[np.ndarray, Batch]:
        """Makes the rows of a batch.

        Returns:
          Which rows are good, (B,) bool, and the batch; rows that are not are zeros.
        """
        examples = self._examples(positions, records)
        good = np.array([not isinstance(x, registry.BadExampleError) for x in examples], np.bool_)
        batch = {key: _aligned((len(examples), *x.shape), x.dtype) for key, x in self.spec.items()}
        for key, column in batch.items():
            for row, example in enumerate(examples):
                entry = example[key] if good[row] else 0
                if isinstance(entry, registry.Lazy):
                    entry.write(column[row])
                else:
                    column[row] = entry
        return good, batch

    def zeros(self, size: int) -> Batch:
        """Makes a batch of zeros."""
        return {key: np.zeros((size, *x.shape), x.dtype) for key, x in self.spec.items()}

    def _examples(
        self, positions: Sequence[int], records: Sequence[bytes]
    ) -> list[registry.Example | registry.BadExampleError]:
        # A key for each example: its numbers are the same in whatever order, on whatever thread.
        keys = [np.array([self._seed % 2**64, position], np.uint64) for position in positions]
        rngs = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        examples = [_attempt(self._split.parse, record) for record in records]
        # Op by op, so that the code of each stays in the caches: decoding an image empties them.
        for op in self._ops:
            examples = [
                example
                if isinstance(example, registry.BadExampleError)
                else _attempt(op, example, rng)
                for example, rng in zip(examples, rngs, strict=True)
            ]
        return examples

    def _find_spec(self) -> Spec:
        """Preprocesses blank examples of two sizes, to see what comes out."""
        specs = []
        for height, width in BLANK_SIZES:
            example = registry.apply(self._ops, self._split.blank(height, width))
            specs.append({key: _struct(key, entry) for key, entry in example.items()})
        for key, first, second in ((key, x, specs[1][key]) for key, x in specs[0].items()):
            if first != second:
                raise ValueError(
                    f"{key!r} needs a fixed size, not {first.shape} of one image and "
                    f"{second.shape} of another"
                )
        return specs[0]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array that TensorFlow takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _attempt(
    function: Callable[..., registry.Example], *args: Any
) -> registry.Example | registry.BadExampleError:
    try:
        return function(*args)
    except registry.BadExampleError as error:
        return error


def _struct(key: str, entry: Any) -> jax.ShapeDtypeStruct:
    array = np.asarray(entry)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key!r} is not made of numbers: leave it out, with keep(...)")
    dtype = np.dtype(np.float32) if array.dtype == np.float64 else array.dtype
    return jax.ShapeDtypeStruct(array.shape, dtype)
