"""From records to preprocessed batches of NumPy arrays, for training and evaluation.

Row r of the global batch of step k is the example at position k * B + r of the stream, on any
number of processes; each reads and preprocesses only its own rows. Order and augmentations are
functions of the seed and the position, so any batch can be made again at any time.

An example that cannot be read or decoded stays a row of its batch: in training another image
takes its place, always the first good one of the split, with the randomness of the position;
in evaluation its row is masked. All other rows are as they would have been.

Images may be bytes here, which `feed.prefetch_to_device` turns into floats.
"""

import atexit
import functools
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, cast

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from vmoe_prc.data.bad_examples import BadExamples
from vmoe_prc.data.files import Records
from vmoe_prc.data.ops.registry import PreprocessError
from vmoe_prc.data.order import Order, Rows
from vmoe_prc.data.preprocess import CHUNK, Batch, Preprocess
from vmoe_prc.data.split import Split
from vmoe_prc.data.workers import Made, made_by_workers
from vmoe_prc.errors import RunError

# Evaluation has a fixed seed: its views are the same in every run.
EVALUATION_SEED = 0

_open: weakref.WeakSet[Generator] = weakref.WeakSet()


def _closed_at_exit(function: Callable[..., Generator]) -> Callable[..., Generator]:
    """Makes a generator function whose generators are closed before the interpreter ends.

    A thread of TensorFlow that calls into an interpreter which is ending never returns, and the
    end of the program waits for it.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Generator:
        generator = function(*args, **kwargs)
        if not _open:
            atexit.unregister(_close)
            atexit.register(_close)
        _open.add(generator)
        return generator

    return wrapped


def _close() -> None:
    for generator in list(_open):
        generator.close()


@_closed_at_exit
def train_batches(
    split: Split,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Makes batches for training without end.

    Every epoch has each example once; a batch may span two epochs.

    Args:
      split: The data.
      seed: Seed of the order and of the augmentations.
      start_step: Step of the first batch; earlier batches are not read.
      process_index: Process whose rows to make.
      process_count: Number of processes.

    Raises:
      RunError: If a file cannot be read, or too many examples are bad.
    """
    config = split.config
    order = Order(split.num_examples, seed, bool(config.shuffle_buffer), config.shuffle_block)
    rows = Rows(
        order,
        config.batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    preprocess = split.preprocess(seed)
    bad = BadExamples(split, preprocess)
    made = (
        made_by_workers(split, rows, seed, config.workers)
        if config.workers
        else _made_by_threads(split, preprocess, rows)
    )
    for batch, missing in _find_missing(made, bad):
        # Arrays of TensorFlow cannot be written to.
        batch = {key: x.copy() for key, x in batch.items()} if missing else batch
        for row, position in missing.items():
            for key, value in bad.replacement(position).items():
                batch[key][row] = value
        yield batch


@_closed_at_exit
def eval_batches(
    split: Split, *, process_index: int = 0, process_count: int = 1
) -> Generator[Batch, None, None]:
    """Makes batches of every example of a split once, in the order of the files.

    Augmentations are the same in every run. All processes yield the same number of batches;
    rows after the last example are zeros, and `mask` (B,) is False there.

    Args:
      split: The data.
      process_index: Process whose rows to make.
      process_count: Number of processes.

    Raises:
      RunError: If a file cannot be read, or too many examples are bad.
    """
    rows = Rows(
        Order(split.num_examples, shuffle=False),
        split.config.batch_size,
        process_index=process_index,
        process_count=process_count,
        end=split.num_examples,
    )
    preprocess = split.preprocess(EVALUATION_SEED)
    bad = BadExamples(split, preprocess)
    batches = _find_missing(_made_by_threads(split, preprocess, rows), bad)
    for _ in range(-(-split.num_examples // split.config.batch_size)):
        batch, missing = next(batches, None) or (preprocess.zeros(0), {})
        mask = np.arange(rows.rows_per_step) < len(batch["image"])
        mask[list(missing)] = False
        yield {**{key: _fill(x, rows.rows_per_step) for key, x in batch.items()}, "mask": mask}


def _find_missing(made: Iterator[Made], bad: BadExamples) -> Iterator[tuple[Batch, dict[int, int]]]:
    """Counts the bad examples of each batch.

    Yields:
      A batch whose missing rows are zeros, and their positions in the stream by row.
    """
    for positions, numbers, good, batch in made:
        missing = np.flatnonzero(~good)
        if missing.size:
            bad.add(numbers[missing].tolist(), positions[missing].tolist())
        yield batch, {int(row): int(positions[row]) for row in missing}


def _made_by_threads(split: Split, preprocess: Preprocess, rows: Rows) -> Iterator[Made]:
    """Makes the rows of each step on the threads of tf.data."""
    chunks = _Chunks(split.records, preprocess, rows, f"{split.name}: {split.field}.process")
    indices = tf.data.Dataset.range(*chunks.range)
    made = indices.map(chunks.tensors, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = _prefetch(made.rebatch(rows.rows_per_step), split.config)
    try:
        yield from cast("Iterator[Made]", batches.as_numpy_iterator())
    except tf.errors.OpError:
        if chunks.failure is None:
            raise
        raise chunks.failure from None


class _Chunks:
    """Makes chunks of rows on the threads of tf.data.

    Attributes:
      range: First index of a chunk, and the index after the last.
      failure: The first exception; TensorFlow would only hand on its text.
    """

    def __init__(self, records: Records, preprocess: Preprocess, rows: Rows, place: str):
        self._records, self._preprocess, self._rows = records, preprocess, rows
        self._place = place
        end = tf.int64.max if rows.stop is None else -(-rows.stop // CHUNK)
        self.range = (rows.start // CHUNK, end)
        self.failure: Exception | None = None

    def tensors(
        self, index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Returns (positions, numbers, good, batch) of a chunk, as tensors of tf.data."""
        fixed = {
            "positions": jax.ShapeDtypeStruct((), np.int64),
            "numbers": jax.ShapeDtypeStruct((), np.int64),
            "good": jax.ShapeDtypeStruct((), np.bool_),
        }
        specs = [*fixed.values(), *self._preprocess.spec.values()]
        tensors = tf.numpy_function(self._make, (index,), [x.dtype for x in specs], stateful=False)
        positions, numbers, good, *columns = (
            tf.ensure_shape(tensor, (None, *x.shape))
            for tensor, x in zip(tensors, specs, strict=True)
        )
        return positions, numbers, good, dict(zip(self._preprocess.spec, columns, strict=True))

    def _make(self, index: np.int64) -> list[np.ndarray]:
        try:
            positions, numbers = self._rows.chunk(int(index), CHUNK)
            records = self._records.read(numbers.tolist())
            good, batch = self._preprocess.rows(positions.tolist(), records)
        except PreprocessError as error:
            self.failure = self.failure or RunError(f"{self._place}: {error}")
            raise
        except Exception as error:
            self.failure = self.failure or error
            raise
        return [positions, numbers, good, *batch.values()]


def _prefetch(batches: tf.data.Dataset, config: ml_collections.ConfigDict) -> tf.data.Dataset:
    autotune = config.prefetch == "autotune"
    return batches.prefetch(tf.data.AUTOTUNE if autotune else config.prefetch)


def _fill(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
