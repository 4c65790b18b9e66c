"""From records to preprocessed batches of NumPy arrays, for training and evaluation.

Row r of the global batch of step k is the example at position k * B + r of the stream, on
however many processes; each of them reads its own rows. The randomness of an example is a
function of the seed and of its position, so a batch can be made again at any time.
"""

from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from vmoe_prc.config import ConfigError
from vmoe_prc.data import pp
from vmoe_prc.data.source import Examples, examples, split_info

Batch = dict[str, np.ndarray]
# Evaluation draws its views from a seed of its own: they stay the same for every run.
EVALUATION_SEED = 0


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
    spec = _example_spec(config, field)
    process_field = f"{field}.process"
    for key in ("image", labels):
        if key not in spec:
            raise ConfigError(process_field, config.process, f"the result lacks {key!r}")
    shape = spec["image"].shape
    if shape.rank not in (3, 4) or not shape.is_fully_defined():
        raise ConfigError(
            process_field,
            config.process,
            f"images need a fixed size, not the shape {shape}",
        )
    if spec["image"].dtype != tf.float32:
        raise ConfigError(
            process_field, config.process, "images must be float: add value_range(-1, 1)"
        )
    if shape.rank == 4 and "view_from_image" not in spec:
        raise ConfigError(process_field, config.process, "two views need 'view_from_image', too")
    if config.batch_size % jax.process_count():
        raise ConfigError(
            f"{field}.batch_size",
            config.batch_size,
            f"must be a multiple of the {jax.process_count()} hosts",
        )


def batch_spec(config: ml_collections.ConfigDict, train: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the global batches, without reading any data.

    Args:
      config: A completed section of `config.dataset`.
      train: Whether they are batches of training; those of evaluation have a `mask`.
    """
    spec = {
        key: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype.as_numpy_dtype)
        for key, x in _example_spec(config, "config.dataset").items()
    }
    if not train:
        spec["mask"] = jax.ShapeDtypeStruct((config.batch_size,), np.bool_)
    return spec


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
    batches = _preprocess(config, split, rows, seed).batch(
        config.batch_size // process_count, drop_remainder=True
    )
    return _prefetch(batches, config).as_numpy_iterator()


def eval_batches(
    config: ml_collections.ConfigDict,
    *,
    seed: int = EVALUATION_SEED,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Reads every example of a split once.

    All processes yield the same number of batches. The last ones are filled up with zeros,
    where `mask` (B,) is False.

    Args:
      config: A completed section of `config.dataset`.
      seed: Seed of the augmentations, if there are any.
      process_index: Which rows to read: those of this process.
      process_count: Number of processes.
    """
    split = examples(config)
    rows = _rows(split.in_order(), config.batch_size, 0, process_index, process_count)
    size = config.batch_size // process_count
    batches = iter(
        _prefetch(_preprocess(config, split, rows, seed).batch(size), config).as_numpy_iterator()
    )
    spec = batch_spec(config, train=True)
    for _ in range(-(-split.num_examples // config.batch_size)):
        batch = next(batches, {k: np.zeros((0, *x.shape[1:]), x.dtype) for k, x in spec.items()})
        count = len(batch["image"])
        yield {
            **{key: _fill(x, size) for key, x in batch.items()},
            "mask": np.arange(size) < count,
        }


def _rows(
    records: tf.data.Dataset,
    batch_size: int,
    start: int,
    process_index: int,
    process_count: int,
) -> tf.data.Dataset:
    """Numbers the records by their position and keeps those of this process."""
    numbered = records.enumerate(start)
    if process_count == 1:
        return numbered
    rows_per_process = batch_size // process_count
    return numbered.filter(
        lambda position, _: position % batch_size // rows_per_process == process_index
    )


def _preprocess(
    config: ml_collections.ConfigDict, split: Examples, rows: tf.data.Dataset, seed: int
) -> tf.data.Dataset:
    process = pp.build(config.process, "config.dataset.process")

    @tf.autograph.experimental.do_not_convert
    def preprocess(position: tf.Tensor, record: tf.Tensor) -> dict[str, Any]:
        example_seed = tf.stack([tf.cast(seed, tf.int64), position])
        return process(split.parse(record), example_seed)

    return rows.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _prefetch(batches: tf.data.Dataset, config: ml_collections.ConfigDict) -> tf.data.Dataset:
    autotune = config.prefetch == "autotune"
    return batches.prefetch(tf.data.AUTOTUNE if autotune else config.prefetch)


def _example_spec(config: ml_collections.ConfigDict, field: str) -> dict[str, tf.TensorSpec]:
    """Traces the preprocessing of one example."""
    process_field = f"{field}.process"
    pp.build(config.process, process_field)
    # The files do not matter for the shapes: small splits need not be loaded for them.
    lazy = ml_collections.ConfigDict({**config, "cache": None})
    split = examples(lazy, field)
    rows = _rows(split.in_order(), config.batch_size, 0, 0, 1)
    try:
        return _preprocess(config, split, rows, 0).element_spec
    except (ValueError, TypeError, KeyError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(process_field, config.process, message) from None


def _fill(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
