"""From serialised examples to arrays for a model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vmoe_prc.data.examples import Parser
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.registry import BadExampleError, Example, Op, PreprocessError

Batch = dict[str, np.ndarray]
Spec = dict[str, jax.ShapeDtypeStruct]

# Rows to preprocess per call: one call per row would cost half as much as the row itself.
CHUNK = 16
# TensorFlow takes over memory without a copy if it is aligned to this many bytes.
ALIGNMENT = 64
# Sizes of the blank images that `find_spec` preprocesses: larger than any usual crop.
BLANK_SIZES = (2003, 3001), (3001, 2003)


def find_spec(ops: Sequence[Op], parse: Parser) -> Spec:
    """Returns shapes and dtypes of preprocessed examples, by preprocessing two blank ones.

    Raises:
      PreprocessError: If the ops do not fit the examples, or give no arrays of a fixed shape.
      BadExampleError: If the ops refuse a blank image.
    """
    specs = []
    for height, width in BLANK_SIZES:
        example = registry.apply(ops, parse.blank(height, width))
        specs.append({key: _struct(key, entry) for key, entry in example.items()})
    for key, first in specs[0].items():
        if first != (second := specs[1][key]):
            raise PreprocessError(
                f"{key!r} needs a fixed size, not {first.shape} of one image and "
                f"{second.shape} of another"
            )
    return specs[0]


class Preprocess:
    """Preprocessing with the randomness of a seed.

    Args:
      ops: The ops.
      parse: The parser of the examples.
      spec: Shapes and dtypes of a preprocessed example, see `find_spec`.
      seed: Seed of the augmentations.
    """

    def __init__(self, ops: Sequence[Op], parse: Parser, spec: Spec, seed: int):
        self._ops, self._parse, self.spec, self._seed = ops, parse, spec, seed

    def one(self, position: int, record: bytes) -> Batch:
        """Makes one example, without an axis for the batch.

        Args:
          position: Its position in the stream, which decides its randomness.
          record: The serialised example.

        Raises:
          BadExampleError: If it cannot be read, decoded or cropped.
        """
        [example] = self._examples([position], [record])
        if isinstance(example, BadExampleError):
            raise example
        return {
            key: np.asarray(registry.computed(example[key]), x.dtype)
            for key, x in self.spec.items()
        }

    def rows(self, positions: Sequence[int], records: Sequence[bytes]) -> tuple[np.ndarray, Batch]:
        """Makes the rows of a batch.

        Returns:
          Which rows are good, (B,) bool, and the batch, in which all other rows are zeros.
        """
        examples = self._examples(positions, records)
        good = np.array([not isinstance(x, BadExampleError) for x in examples], np.bool_)
        batch = {key: _aligned((len(examples), *x.shape), x.dtype) for key, x in self.spec.items()}
        for key, column in batch.items():
            for row, example in enumerate(examples):
                entry = 0 if isinstance(example, BadExampleError) else example[key]
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
    ) -> list[Example | BadExampleError]:
        # One generator per position: numbers do not depend on the order or the thread.
        keys = [np.array([self._seed % 2**64, position], np.uint64) for position in positions]
        rngs = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        examples = [_attempt(self._parse, record) for record in records]
        # Op by op: decoding an image empties the caches of the code of the other ops.
        for op in self._ops:
            examples = [
                example if isinstance(example, BadExampleError) else _attempt(op, example, rng)
                for example, rng in zip(examples, rngs, strict=True)
            ]
        return examples


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array that TensorFlow takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _attempt(function: Callable[..., Example], *args: Any) -> Example | BadExampleError:
    try:
        return function(*args)
    except BadExampleError as error:
        return error


def _struct(key: str, entry: Any) -> jax.ShapeDtypeStruct:
    array = np.asarray(entry)
    if array.dtype.kind not in "biuf":
        raise PreprocessError(f"{key!r} is not made of numbers: leave it out, with keep(...)")
    dtype = np.dtype(np.float32) if array.dtype == np.float64 else array.dtype
    return jax.ShapeDtypeStruct(array.shape, dtype)
