"""From records to preprocessed batches of NumPy arrays, for training and evaluation.

Images are bytes as long as they can be; `feed.device_batches` makes them floats.

Row r of the global batch of step k is the example at position k * B + r of the stream, on
however many processes; each of them preprocesses its own rows. The randomness of an example
is a function of the seed and of its position, so a batch can be made again at any time.

An example that cannot be read or decoded stays a row of its batch: in training another image
takes its place, always the first good one of the split, with the randomness of the position;
in evaluation its row is masked. All other rows are as they would have been.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from vmoe_prc.config import ConfigError
from vmoe_prc.data.bad_examples import BadExamples
from vmoe_prc.data.lifetime import closed_at_exit
from vmoe_prc.data.ops import registry
from vmoe_prc.data.preprocess import Batch, Preprocess, Spec
from vmoe_prc.data.source import Examples, examples, split_info, unreadable

# TensorFlow would take the memory of the GPU that JAX trains on.
tf.config.set_visible_devices([], "GPU")

# Evaluation draws its views from a seed of its own: they stay the same for every run.
EVALUATION_SEED = 0
# Examples of one call into Python: a call for each would cost half as much as an example itself.
CHUNK = 16


def validate(
    config: ml_collections.ConfigDict, field: str = "config.dataset", labels: str = "labels"
) -> None:
    """Checks all that can be checked of a data set without reading it.

    Args:
      config: A completed section of `config.dataset`.
      field: Its name, for errors.
      labels: What the preprocessing must give beside `image`: 'labels' (one-hot), or
        'label' (the class).

    Raises:
      ConfigError: If the data set is unknown or not prepared, the split does not exist,
        the preprocessing does not fit it, or the hosts do not divide the batch.
    """
    split_info(config, field)
    spec = Preprocess(config, _unread(config, field), 0, field).spec
    process_field = f"{field}.process"
    for key in ("image", labels):
        if key not in spec:
            raise ConfigError(process_field, config.process, f"the result lacks {key!r}")
    image = spec["image"]
    if len(image.shape) not in (3, 4):
        raise ConfigError(
            process_field,
            config.process,
            f"images need 3 axes, or 4 for two views, not the shape {image.shape}",
        )
    if image.dtype != np.float32 and registry.VALUE_RANGE not in spec:
        raise ConfigError(
            process_field, config.process, "images must be float: add value_range(-1, 1)"
        )
    if len(image.shape) == 4 and "view_from_image" not in spec:
        raise ConfigError(process_field, config.process, "two views need 'view_from_image', too")
    if config.batch_size % jax.process_count():
        raise ConfigError(
            f"{field}.batch_size",
            config.batch_size,
            f"must be a multiple of the {jax.process_count()} hosts",
        )


def batch_spec(config: ml_collections.ConfigDict, train: bool) -> Spec:
    """Returns the shapes and dtypes of the global batches on devices, without reading any data.

    Args:
      config: A completed section of `config.dataset`.
      train: Whether they are batches of training; those of evaluation have a `mask`.
    """
    spec = {
        key: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for key, x in Preprocess(config, _unread(config), 0).spec.items()
    }
    if spec.pop(registry.VALUE_RANGE, None):
        spec["image"] = jax.ShapeDtypeStruct(spec["image"].shape, np.float32)
    if not train:
        spec["mask"] = jax.ShapeDtypeStruct((config.batch_size,), np.bool_)
    return spec


@closed_at_exit
def train_batches(
    config: ml_collections.ConfigDict,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Reads batches for training without end.

    Every epoch has each example once; a batch may span two epochs.

    Args:
      config: A completed section of `config.dataset`.
      seed: Seed of the order and of the augmentations.
      start_step: Batches to leave out: those that follow are the same as if they had been
        read.
      process_index: Which rows to read: those of this process.
      process_count: Number of processes.
    """
    split = examples(config)
    start = start_step * config.batch_size
    records = split.shuffled_from(start, seed, config.shuffle_buffer)
    rows = _rows(records, config.batch_size, start, process_index, process_count)
    preprocess = Preprocess(config, split, seed)
    bad = BadExamples(config, split, preprocess)
    for batch, missing in _batches(config, preprocess, rows, process_count, bad):
        # TensorFlow's own memory is for reading.
        batch = {key: x.copy() for key, x in batch.items()} if missing else batch
        for row, position in missing.items():
            for key, value in bad.stand_in(position).items():
                batch[key][row] = value
        yield batch


@closed_at_exit
def eval_batches(
    config: ml_collections.ConfigDict,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Reads every example of a split once.

    Augmentations are the same in every run. All processes yield the same number of batches;
    the last ones are filled up with zeros, where `mask` (B,) is False.

    Args:
      config: A completed section of `config.dataset`.
      process_index: Which rows to read: those of this process.
      process_count: Number of processes.
    """
    split = examples(config)
    rows = _rows(split.in_order(), config.batch_size, 0, process_index, process_count)
    preprocess = Preprocess(config, split, EVALUATION_SEED)
    bad = BadExamples(config, split, preprocess)
    size = config.batch_size // process_count
    batches = _batches(config, preprocess, rows, process_count, bad)
    for _ in range(-(-split.num_examples // config.batch_size)):
        batch, missing = next(batches, None) or (preprocess.zeros(0), {})
        mask = np.arange(size) < len(batch["image"])
        mask[list(missing)] = False
        yield {**{key: _fill(x, size) for key, x in batch.items()}, "mask": mask}


def _rows(
    records: tf.data.Dataset,
    batch_size: int,
    start: int,
    process_index: int,
    process_count: int,
) -> tf.data.Dataset:
    """Gives (position, number, record) of the records that are rows of this process."""
    numbered = records.enumerate(start).map(lambda position, record: (position, *record))
    if process_count == 1:
        return numbered
    rows_per_process = batch_size // process_count
    return numbered.filter(
        lambda position, *_: position % batch_size // rows_per_process == process_index
    )


def _batches(
    config: ml_collections.ConfigDict,
    preprocess: Preprocess,
    rows: tf.data.Dataset,
    process_count: int,
    bad: BadExamples,
) -> Iterator[tuple[Batch, dict[int, int]]]:
    """Preprocesses the rows of each batch, and says which are missing.

    Yields:
      A batch whose missing rows are zeros, and the positions of these by their row.
    """
    chunk = functools.partial(_chunk, preprocess)
    chunks = rows.batch(CHUNK).map(chunk, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = chunks.rebatch(config.batch_size // process_count)
    for positions, numbers, good, batch in _read(_prefetch(batches, config), config):
        missing = np.flatnonzero(~good)
        if missing.size:
            bad.add(numbers[missing].tolist(), positions[missing].tolist())
        yield batch, {int(row): int(positions[row]) for row in missing}


def _chunk(
    preprocess: Preprocess, positions: tf.Tensor, numbers: tf.Tensor, records: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Returns `positions`, `numbers`, and what `Preprocess.rows` does."""
    spec = {"": jax.ShapeDtypeStruct((), np.bool_), **preprocess.spec}

    def rows(positions: np.ndarray, records: np.ndarray) -> list[np.ndarray]:
        good, batch = preprocess.rows(positions.tolist(), records.tolist())
        return [good, *batch.values()]

    dtypes = [x.dtype for x in spec.values()]
    tensors = tf.numpy_function(rows, (positions, records), dtypes, stateful=False)
    good, *columns = (
        tf.ensure_shape(tensor, (None, *x.shape))
        for tensor, x in zip(tensors, spec.values(), strict=True)
    )
    return positions, numbers, good, dict(zip(preprocess.spec, columns, strict=True))


def _read(batches: tf.data.Dataset, config: ml_collections.ConfigDict) -> Iterator[Any]:
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise unreadable(config, error) from error


def _prefetch(batches: tf.data.Dataset, config: ml_collections.ConfigDict) -> tf.data.Dataset:
    autotune = config.prefetch == "autotune"
    return batches.prefetch(tf.data.AUTOTUNE if autotune else config.prefetch)


def _unread(config: ml_collections.ConfigDict, field: str = "config.dataset") -> Examples:
    """Opens a split for its shapes alone: small ones need not be loaded for them."""
    return examples(ml_collections.ConfigDict({**config, "cache": None}), field)


def _fill(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
