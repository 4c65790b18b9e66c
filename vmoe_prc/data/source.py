"""Raw records of TFDS data sets, in an order that a seed and an epoch fix."""

import functools
from typing import Any

import ml_collections
import numpy as np
import simplejpeg
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.data.datasets import OWN_BUILDERS
from vmoe_prc.data.ops.registry import BadExampleError, Example
from vmoe_prc.data.tfrecords import openable, read_record
from vmoe_prc.errors import RunError

# Stands for a record that was not read; no example is so short.
_LOST = b""
READ_AHEAD = 16

# Its bars for each shard would hide our one line of progress.
tfds.disable_progress_bar()

# A whole split, or a part of one such as train[:99%].
SplitInfo = tfds.core.SplitInfo | tfds.core.splits.SubSplitInfo


def load_builder(
    config: ml_collections.ConfigDict, field: str = "config.dataset"
) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; prepares it if it is one of our own.

    Args:
      config: `name`, `data_dir` and `manual_dir` of the data set.
      field: Name of the config's section, for errors.

    Raises:
      ConfigError: If the data set is unknown or not prepared.
    """
    name = config.name.partition(":")[0].partition("/")[0]
    if name in OWN_BUILDERS:
        options = {} if config.manual_dir is None else {"manual_dir": config.manual_dir}
        try:
            builder = OWN_BUILDERS[name](data_dir=config.data_dir, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{field}.manual_dir", config.manual_dir, str(error)) from None
        builder.download_and_prepare()
        return builder
    try:
        builder = tfds.builder(config.name, data_dir=config.data_dir)
    except tfds.core.DatasetNotFoundError:
        known = [*OWN_BUILDERS, *tfds.list_builders()]
        raise ConfigError(
            f"{field}.name",
            config.name,
            "is neither a data set of TFDS nor prepared in data_dir",
            nearest(name, known),
        ) from None
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{field}.name", config.name, str(error)) from None
    if not builder.is_prepared():
        raise ConfigError(
            f"{field}.name",
            config.name,
            f"is not prepared in {builder.data_path}; run `python -m vmoe_prc.data.prepare "
            f"{config.name}`, or set {field}.data_dir to where it has been prepared",
        )
    return builder


def num_examples(config: ml_collections.ConfigDict) -> int:
    """Returns the number of examples of the split."""
    return split_info(config).num_examples


def split_info(config: ml_collections.ConfigDict, field: str = "config.dataset") -> SplitInfo:
    """Returns what TFDS knows of the split.

    Raises:
      ConfigError: If the data set or the split does not exist, or is empty.
    """
    builder = load_builder(config, field)
    try:
        info = builder.info.splits[config.split]
        count = info.num_examples
    except (KeyError, ValueError, AssertionError):
        sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
        allowed = ", ".join(f"{name} ({size:,} examples)" for name, size in sizes.items())
        raise ConfigError(
            f"{field}.split",
            config.split,
            f"no such split; allowed: {allowed} and parts such as {next(iter(sizes))}[:99%]",
            nearest(config.split, sizes),
        ) from None
    if not count:
        raise ConfigError(f"{field}.split", config.split, "has no examples")
    return info


def examples(config: ml_collections.ConfigDict, field: str = "config.dataset") -> "Examples":
    """Opens the split for reading.

    Raises:
      ConfigError: If it cannot be opened.
      RunError: If its files cannot be read.
    """
    builder = load_builder(config, field)
    info = split_info(config, field)
    records = _Files(info)
    try:
        source = _Memory(records) if config.cache == "loaded" else records
    except tf.errors.OpError as error:
        raise unreadable(config, error) from error
    return Examples(builder.info.features, source, info.num_examples)


def unreadable(config: ml_collections.ConfigDict, error: tf.errors.OpError) -> RunError:
    """Makes one line of what TensorFlow says of files that cannot be read."""
    # What follows is where in a program of ours it was found.
    cause = error.message.partition("Traceback")[0]
    return RunError(f"{config.name} ({config.split}) cannot be read: {cause}")


class Examples:
    """The examples of a split, whose images are still encoded.

    A dataset of them has elements (number in the split, serialised example): int64 scalar
    and string scalar. A record that is damaged is an empty string at its place.

    Attributes:
      num_examples: How many there are.
    """

    def __init__(self, features: tfds.features.FeaturesDict, source: Any, num_examples: int):
        self._features, self._source, self.num_examples = features, source, num_examples
        images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
        self._decoders = {key: tfds.decode.SkipDecoding() for key in images}

    def in_order(self) -> tf.data.Dataset:
        """All examples once, in the order of the files."""
        return self._source.read()

    def shuffled_from(self, position: int, seed: int, buffer: int) -> tf.data.Dataset:
        """Endless epochs of examples, each shuffled in its own way.

        Args:
          position: Examples to leave out at the beginning: the stream is the same as one
            read from 0 up to there. Only records of the epoch in progress are read again.
          seed: Seed of the shuffling.
          buffer: Size of the shuffle buffer; 0 keeps the order.
        """
        epoch, skipped = divmod(position, self.num_examples)
        epochs = tf.data.Dataset.range(epoch, tf.int64.max)

        def read(epoch: tf.Tensor) -> tf.data.Dataset:
            epoch_seed = tf.random.stateless_uniform(
                (), tf.stack([tf.cast(seed, tf.int64), epoch]), None, None, tf.int64
            )
            return self._source.read_shuffled(epoch_seed, buffer) if buffer else self.in_order()

        return epochs.flat_map(read).skip(skipped)

    def parse(self, record: bytes) -> Example:
        """Parses a serialised example; images stay encoded.

        Raises:
          BadExampleError: If it is not one of this data set.
        """
        if not record:
            raise BadExampleError("damaged")
        try:
            return self._features.deserialize_example_np(record, decoders=self._decoders)
        except (DecodeError, KeyError, ValueError, AttributeError) as error:
            raise BadExampleError(f"not an example of this data set: {error}") from None

    def blank(self, height: int, width: int) -> Example:
        """Makes an example of zeros, as `parse` would give it.

        Args:
          height: Of its image, if images differ in height.
          width: Of its image, if images differ in width.
        """
        return {key: _blank(feature, height, width) for key, feature in self._features.items()}

    def record(self, number: int) -> bytes:
        """Reads one serialised example, slowly; empty if it is damaged."""
        return self._source.record(number)

    def where(self, number: int) -> str:
        """Says in which file an example is, and where in it."""
        path, index = self._source.place(number)
        return f"record {index} of {path}"


class _Files:
    """Records read from the files of a split whenever they are needed."""

    def __init__(self, info: SplitInfo):
        parts = info.file_instructions
        self._paths = [str(part.filename) for part in parts]
        self._skip = np.asarray([part.skip for part in parts], np.int64)
        self._take = np.asarray([part.take for part in parts], np.int64)
        self._first = np.cumsum(self._take) - self._take
        self._files = tf.data.Dataset.from_tensor_slices(
            (self._paths, self._skip, self._take, self._first)
        )

    def read(self) -> tf.data.Dataset:
        return self._files.flat_map(_read_file)

    def read_shuffled(self, seed: tf.Tensor, buffer: int) -> tf.data.Dataset:
        files = self._files.shuffle(len(self._paths), seed, reshuffle_each_iteration=False)
        records = files.interleave(
            _read_file,
            cycle_length=min(READ_AHEAD, len(self._paths)),
            block_length=READ_AHEAD,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return records.shuffle(buffer, seed, reshuffle_each_iteration=False)

    def record(self, number: int) -> bytes:
        return read_record(*self.place(number))

    def place(self, number: int) -> tuple[str, int]:
        file = int(np.searchsorted(self._first, number, "right")) - 1
        return self._paths[file], int(number - self._first[file] + self._skip[file])


class _Memory:
    """Records of a small split, read once and kept."""

    def __init__(self, files: _Files):
        self._files = files
        self._records = tf.constant([record for _, record in files.read().as_numpy_iterator()])

    def read(self) -> tf.data.Dataset:
        return self._take(tf.data.Dataset.range(len(self._records)))

    def read_shuffled(self, seed: tf.Tensor, buffer: int) -> tf.data.Dataset:
        order = tf.data.Dataset.range(len(self._records))
        return self._take(order.shuffle(buffer, seed, reshuffle_each_iteration=False))

    def _take(self, order: tf.data.Dataset) -> tf.data.Dataset:
        return order.map(lambda i: (i, self._records[i]))

    def record(self, number: int) -> bytes:
        return self._records[number].numpy()

    def place(self, number: int) -> tuple[str, int]:
        return self._files.place(number)


def _blank(feature: tfds.features.FeatureConnector, height: int, width: int) -> Any:
    if isinstance(feature, tfds.features.Image):
        return _black_jpeg(feature.shape[0] or height, feature.shape[1] or width)
    return _zeros(feature.shape, feature.np_dtype)


@functools.cache
def _black_jpeg(height: int, width: int) -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8))


def _zeros(shape: Any, dtype: Any) -> Any:
    """Makes zeros; sides that `shape` leaves open are 1."""
    if isinstance(shape, dict):
        return {key: _zeros(shape[key], dtype[key]) for key in shape}
    if dtype is np.object_:
        return b""
    return np.zeros([side or 1 for side in shape], dtype)


def _read_file(
    path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor, first: tf.Tensor
) -> tf.data.Dataset:
    """Reads a part of a file, always `take` records; `first` is the number of its first."""
    # Of a file that cannot be opened `ignore_errors` would never see the end.
    path = tf.ensure_shape(tf.numpy_function(openable, (path,), tf.string), ())
    records = tf.data.TFRecordDataset(path, buffer_size=8 << 20)
    # TensorFlow leaves a file at the first damaged record; what is behind it is found below.
    lost = tf.data.Dataset.from_tensors(_LOST).repeat()
    found = records.ignore_errors().concatenate(lost).skip(skip).take(take)

    def find(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def again() -> tf.Tensor:
            return tf.ensure_shape(
                tf.numpy_function(read_record, (path, index + skip), tf.string), ()
            )

        return first + index, tf.cond(record == _LOST, again, lambda: record)

    return found.enumerate().map(find)
