"""Opens data sets: TFDS builders, of TFDS itself or registered in `DATASETS`."""

import contextlib
import errno
import functools
import inspect
import io
import os
import shlex
from collections.abc import Callable
from typing import Any

import ml_collections
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.proto import dataset_info_pb2

from vmoe_prc.config import ConfigError, NotPreparedError, nearest
from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.files import SplitInfo
from vmoe_prc.data.locks import file_lock
from vmoe_prc.data.remote import is_remote
from vmoe_prc.data.shards import ImageListBuilder
from vmoe_prc.errors import RunError

_DatasetInfo: Any = vars(dataset_info_pb2)["DatasetInfo"]  # made by protobuf on import
INFO_FILE = "dataset_info.json"
# No data set is larger; a larger number in dataset_info.json is damage.
MAX_EXAMPLES = 10**11

# Errors of a disk that is full; TFDS hands them on as other exceptions with the same text.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Builder = tfds.core.DatasetBuilder


def open_builder(
    config: ml_collections.ConfigDict, field: str = "config.dataset", *, prepare: bool = True
) -> Builder:
    """Opens a prepared data set; prepares one of `DATASETS` that needs no downloads.

    Args:
      config: `name`, `data_dir` and `manual_dir` of the data set.
      field: Name of the config's section, for errors.
      prepare: Whether it may be prepared. Otherwise nothing is written.

    Raises:
      ConfigError: If the data set is unknown, not prepared, or damaged.
      NotPreparedError: If it could be prepared, and may not.
    """
    make = builder_factory(config.name, config.data_dir, config.manual_dir)
    try:
        builder = make()
        if not builder.is_prepared():
            expected = (
                f"is not prepared in {builder.data_path}; run `{_command(config)}`, or set "
                f"{field}.data_dir to where it has been prepared"
            )
            if config.name not in DATASETS or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
                raise ConfigError(f"{field}.name", config.name, expected)
            if not prepare:
                able = functools.partial(open_builder, config, field)
                raise NotPreparedError(f"{field}.name", config.name, expected, able)
            builder = prepare_once(make)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(
            f"{field}.name",
            config.name,
            "is neither a data set of TFDS nor prepared in data_dir",
            nearest(_base_name(config.name), [*DATASETS, *tfds.list_builders()]),
        ) from None
    except DatasetError as error:
        raise ConfigError(f"{field}.manual_dir", config.manual_dir, str(error)) from error
    except OSError as error:
        raise ConfigError(f"{field}.data_dir", config.data_dir, _line(error)) from error
    if problem := _info_problem(builder):
        raise ConfigError(f"{field}.name", config.name, problem)
    return builder


def _command(config: ml_collections.ConfigDict) -> str:
    """Returns the command that prepares a data set."""
    options = {"--from": config.manual_dir, "--data-dir": config.data_dir}
    given = [f"{flag}={value}" for flag, value in options.items() if value]
    return shlex.join(["python", "-m", "vmoe_prc.data.prepare", config.name, *given])


def builder_factory(
    name: str, data_dir: str | os.PathLike[str] | None, manual_dir: str | None
) -> Callable[[], Builder]:
    """Returns a function that opens a data set; each call looks at the files again.

    Args:
      name: Name in `DATASETS`, or in TFDS with its config and version.
      data_dir: Directory of prepared data sets; None is TFDS's own.
      manual_dir: Directory of the source files, for data sets of `DATASETS` that take one.

    Raises:
      ConfigError: When called: if TFDS refuses the name, or a dataset_info.json is damaged.
    """
    directory = None if data_dir is None else os.fspath(data_dir)
    if name in DATASETS:
        _set_folder(DATASETS[name])
        options = {"manual_dir": manual_dir} if takes_files(name) else {}
        make = functools.partial(DATASETS[name], data_dir=directory, **options)
    else:
        make = functools.partial(tfds.builder, name, data_dir=directory)

    def checked() -> Builder:
        try:
            return make()
        except tfds.core.DatasetNotFoundError:
            raise
        except Exception as error:
            # TFDS raises anything for a damaged file; what else may be wrong with a builder of
            # our own, or a user's, keeps its traceback.
            if problem := _damaged_info(_base_name(name), directory):
                raise ConfigError("data set", name, problem) from error
            if name in DATASETS or not isinstance(error, (ValueError, AssertionError)):
                raise
            raise ConfigError("data set", name, _line(error)) from error

    return checked


def takes_files(name: str) -> bool:
    """Whether a data set is one of `DATASETS` that is made from files in `manual_dir`."""
    return name in DATASETS and "manual_dir" in inspect.signature(DATASETS[name]).parameters


def _set_folder(factory: Any) -> None:
    """Tells TFDS the folder of a builder's file, which it finds only for files in packages."""
    if inspect.isclass(factory) and getattr(factory, "pkg_dir_path", factory) is None:
        setattr(factory, "pkg_dir_path", epath.Path(inspect.getfile(factory)).parent)  # noqa: B010


def prepare_once(
    make: Callable[[], Builder], processes: int | None = None, **options: Any
) -> Builder:
    """Prepares a data set unless it is prepared, while other processes that want to wait.

    Args:
      make: Function of `builder_factory`.
      processes: Processes that write, where the data set can be written by several; None is one
        for each core.
      **options: Of TFDS's `download_and_prepare`.

    Raises:
      RunError: If the disk is full.
    """
    builder = make()
    if builder.is_prepared():
        return builder
    path = epath.Path(builder.data_path)
    with file_lock(path.parent / f".{path.name}.lock"):
        builder = make()
        if builder.is_prepared():
            return builder
        if isinstance(builder, ImageListBuilder):
            builder.processes = processes
        try:
            # TFDS writes to another directory, and renames it at the end. It prints lines such as
            # "Unknown size (download: Unknown size".
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format=_file_format(path), **options)
        except Exception as error:
            # On an object store, which has no locks, another process may have been faster.
            if not make().is_prepared():
                if any(os.strerror(number) in str(error) for number in _FULL):
                    raise RunError(f"{path} cannot be written: {_line(error)}") from error
                raise
        return make()


def _file_format(path: epath.Path) -> tfds.core.FileFormat:
    # ArrayRecord has an index of its records, but is read from file systems only.
    formats = tfds.core.FileFormat
    return formats.TFRECORD if is_remote(str(path)) else formats.ARRAY_RECORD


def split_info(builder: Builder, split: str, field: str) -> SplitInfo:
    """Returns TFDS's record of a split.

    Raises:
      ConfigError: If the split does not exist or is empty.
    """
    try:
        info = builder.info.splits[split]
        count = info.num_examples
    except (KeyError, ValueError, AssertionError):
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        allowed = ", ".join(f"{name} ({size:,} examples)" for name, size in sizes.items())
        raise ConfigError(
            f"{field}.split",
            split,
            f"no such split; allowed: {allowed} and parts such as {next(iter(sizes))}[:99%]",
            nearest(split, sizes),
        ) from None
    if not count:
        raise ConfigError(f"{field}.split", split, "has no examples")
    return info


def _base_name(name: str) -> str:
    return name.partition(":")[0].partition("/")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _info_problem(builder: Builder) -> str | None:
    """Returns what is wrong with the dataset_info.json that a builder has read."""
    path = epath.Path(builder.data_path) / INFO_FILE
    if not builder.info.splits:
        return f"{path} names no splits: it is missing or damaged; prepare the data set again"
    for name, info in builder.info.splits.items():
        if min(info.shard_lengths, default=0) < 0 or info.num_examples > MAX_EXAMPLES:
            return f"{path} is damaged: split {name} has {info.shard_lengths} examples"
        try:
            _ = info.filepaths
        except ValueError as error:  # the template of the file names is damaged
            return f"{path} is damaged: split {name} names no files ({_line(error)})"
    return None


def _damaged_info(name: str, data_dir: str | None) -> str | None:
    """Returns which dataset_info.json of a data set cannot be read, and why."""
    root = epath.Path(data_dir or DATA_DIR).expanduser() / name
    for path in sorted([*root.glob(f"*/{INFO_FILE}"), *root.glob(f"*/*/{INFO_FILE}")]):
        try:
            info = json_format.Parse(path.read_text(), _DatasetInfo())
        except (json_format.ParseError, ValueError, OSError) as error:
            return f"{path} is damaged; delete its directory, and prepare it again ({_line(error)})"
        if info.version != path.parent.name:
            return f"{path} is of version {info.version!r}, unlike its directory"
    return None
