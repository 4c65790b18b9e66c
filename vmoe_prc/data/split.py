"""Splits of data sets with their preprocessing, opened once and handed on."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.config import ConfigError
from vmoe_prc.data.builders import Builder, open_builder, split_info
from vmoe_prc.data.examples import Parser, features_of
from vmoe_prc.data.files import FileRecords, MemoryRecords, Records, SplitInfo
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.image_ops import ValueRange
from vmoe_prc.data.preprocess import Preprocess, Spec, find_spec
from vmoe_prc.data.setup import setup_tensorflow


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a data set and the preprocessing that a configuration asks for.

    Attributes:
      config: The completed section of `config.dataset`, a copy.
      field: Name of the section, for errors.
      builder: The data set.
      info: TFDS's record of the split.
      ops: The preprocessing.
      spec: Shapes and dtypes of a preprocessed example.
    """

    config: ml_collections.ConfigDict
    field: str
    builder: Builder
    info: SplitInfo
    ops: tuple[registry.Op, ...]
    spec: Spec

    @property
    def name(self) -> str:
        """Data set and split, for messages."""
        return f"{self.config.name} ({self.config.split})"

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self.info.num_examples

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the labels; None if the labels are no classes."""
        return class_names_of(self.builder)

    @property
    def num_classes(self) -> int | None:
        """Length of the one-hot `labels`; None if `process` makes none."""
        return self.spec["labels"].shape[-1] if "labels" in self.spec else None

    @property
    def value_range(self) -> tuple[float, float] | None:
        """(low, high) of the pixels that a model sees; None if `process` has no value_range.

        Images of bytes in batches of `pipeline` stand for these values: see
        `feed.prefetch_to_device`.
        """
        ranges = [(op.low, op.high) for op in self.ops if isinstance(op, ValueRange)]
        return ranges[-1] if ranges else None

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the data set, in hexadecimal digits: equal for equal data.

        It depends on names, versions, classes, and the number and bytes of the examples of all
        splits; for class folders on the names, classes and sizes of all files.
        """
        content = getattr(self.builder, "content_digest", None) or {
            name: [info.num_examples, info.num_bytes]
            for name, info in self.builder.info.splits.items()
        }
        parts = [self.config.name, str(self.builder.version), self.class_names, content]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def description(self) -> dict[str, Any]:
        """Returns what a run keeps to tell later whether its data have changed, as JSON."""
        return {
            "name": self.config.name,
            "version": str(self.builder.version),
            "split": self.config.split,
            "num_examples": self.num_examples,
            "classes": self.class_names and list(self.class_names),
            "digest": self.digest,
        }

    def batch_spec(self, train: bool) -> Spec:
        """Returns shapes and dtypes of global batches on devices, without reading data.

        Args:
          train: Whether they are batches of training; batches of evaluation have a `mask`.
        """
        size = self.config.batch_size
        spec = {k: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for k, x in self.spec.items()}
        if "image" in spec and self.value_range:
            spec["image"] = jax.ShapeDtypeStruct(spec["image"].shape, np.float32)
        if not train:
            spec["mask"] = jax.ShapeDtypeStruct((size,), np.bool_)
        return spec

    @functools.cached_property
    def records(self) -> Records:
        """The serialised examples.

        Raises:
          RunError: If they are to be loaded into memory, and cannot be read.
        """
        files = FileRecords(self.info, self.name)
        loaded = self.config.cache == "loaded"
        return MemoryRecords(files, self.num_examples) if loaded else files

    def preprocess(self, seed: int) -> Preprocess:
        """Returns the preprocessing with the randomness of a seed."""
        return Preprocess(self.ops, Parser(features_of(self.builder)), self.spec, seed)


def class_names_of(builder: Builder) -> tuple[str, ...] | None:
    """Returns the names of the classes of a data set; None if the labels are no classes.

    They are the names of the feature `label`, or of the first feature that has classes.
    """
    features = features_of(builder)
    found = [features[key] for key in sorted(features.keys(), key=lambda key: key != "label")]
    classes = [x for x in found if isinstance(x, tfds.features.ClassLabel)]
    return tuple(classes[0].names) if classes and classes[0].num_classes else None


def open_split(
    config: ml_collections.ConfigDict, field: str = "config.dataset", labels: str = "labels"
) -> Split:
    """Opens a split and checks all that can be checked without reading it.

    Args:
      config: A completed section of `config.dataset`.
      field: Its name, for errors.
      labels: Entry that the preprocessing must give in addition to `image`: 'labels'
        (one-hot) or 'label' (the class).

    Raises:
      ConfigError: If the data set is unknown or not prepared, the split does not exist,
        the preprocessing does not fit it, or the processes do not divide the batch.
    """
    return open_splits({"": config}, {"": field}, labels)[""]


def open_splits(
    configs: Mapping[str, ml_collections.ConfigDict],
    fields: Mapping[str, str] | None = None,
    labels: str = "labels",
) -> dict[str, Split]:
    """Opens splits; a data set that several of them share is opened once.

    Args:
      configs: Completed sections of `config.dataset` by their names.
      fields: Names of the sections, for errors; None for sections of `config.dataset`.
      labels: See `open_split`.

    Raises:
      ConfigError: See `open_split`.
    """
    setup_tensorflow()
    builders: dict[tuple[Any, ...], Builder] = {}
    splits = {}
    for name, config in configs.items():
        field = fields[name] if fields else f"config.dataset.{name}"
        key = (config.name, config.data_dir, config.manual_dir)
        if key not in builders:
            builders[key] = open_builder(config, field)
        splits[name] = _with_preprocessing(builders[key], config, field, labels)
    return splits


def _with_preprocessing(
    builder: Builder, config: ml_collections.ConfigDict, field: str, labels: str
) -> Split:
    info = split_info(builder, config.split, field)
    process_field = f"{field}.process"
    ops = tuple(registry.build(config.process, process_field))
    try:
        spec = find_spec(ops, Parser(features_of(builder)))
    except (registry.PreprocessError, registry.BadExampleError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(process_field, config.process, message) from error
    except Exception as error:
        error.add_note(f"(in {process_field} = {config.process!r}, tried on a blank image)")
        raise
    # A copy: who changes the configuration later opens another split.
    split = Split(ml_collections.ConfigDict(config), field, builder, info, ops, spec)
    _check_entries(split, labels)
    if config.batch_size % jax.process_count():
        expected = f"must be a multiple of the {jax.process_count()} processes"
        raise ConfigError(f"{field}.batch_size", config.batch_size, expected)
    return split


def _check_entries(split: Split, labels: str) -> None:
    """Checks the entries of preprocessed examples."""
    spec, process = split.spec, split.config.process
    field = f"{split.field}.process"
    for key in ("image", labels):
        if key not in spec:
            raise ConfigError(field, process, f"the result lacks {key!r}")
    image = spec["image"]
    if len(image.shape) not in (3, 4):
        expected = f"images need 3 axes, or 4 for two views, not the shape {image.shape}"
        raise ConfigError(field, process, expected)
    if image.dtype != np.float32 and not (image.dtype == np.uint8 and split.value_range):
        raise ConfigError(field, process, "images must be float: add value_range(-1, 1)")
    if len(image.shape) == 4 and "view_from_image" not in spec:
        raise ConfigError(field, process, "two views need 'view_from_image', too")
