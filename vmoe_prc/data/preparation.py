"""Prepares data sets as ArrayRecord files, from downloads or from files of the user."""

import hashlib
import os
import pathlib
import tarfile
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.units import Size

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data import official
from vmoe_prc.data.builders import Builder, builder_factory, prepare_once, takes_files
from vmoe_prc.data.datasets.imagenet21k import class_names
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.remote import is_remote
from vmoe_prc.data.setup import setup_tensorflow

# Raised for files that are missing, cannot be downloaded or are damaged.
_UNUSABLE = (AssertionError, EOFError, OSError, tarfile.TarError, tf.errors.OpError)


def prepare(
    name: str,
    files: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    partial: bool = False,
    processes: int | None = None,
) -> tfds.core.DatasetBuilder:
    """Prepares a data set as ArrayRecord files, unless that is done already.

    Args:
      name: Name in TFDS, or in `DATASETS`.
      files: Directory with files of the data set; those that are missing are downloaded.
      data_dir: Where to write.
      partial: Whether to accept files that lack examples.
      processes: See `prepare_once`.

    Raises:
      ConfigError: If the data set is unknown, or files that it needs are missing, damaged or
        incomplete.
    """
    if files is not None:
        _check_directory(name, os.fspath(files))
    setup_tensorflow()
    manual_dir = None if files is None else os.fspath(files)
    make = builder_factory(name, data_dir, manual_dir)
    try:
        builder = make()
        if builder.is_prepared():
            return builder
        if files is not None and not takes_files(name):
            official.check_files(name, pathlib.Path(files), partial)
            if name == "imagenet21k" and not partial:
                # A label is the rank of a class: a missing class would shift the labels of others.
                official.check_classes(len(class_names(pathlib.Path(files))))
            _trust_local_files(builder, pathlib.Path(files))
        elif builder.url_infos:
            # Logged first, since it takes minutes until TFDS gives up on a server.
            logging.info("downloading: %s %s", name, _instructions(builder))
        return _make(make, name, manual_dir, partial, processes)
    except tfds.core.DatasetNotFoundError:
        known = [*DATASETS, *tfds.list_builders()]
        raise ConfigError("data set", name, "unknown", nearest(name, known)) from None
    except DatasetError as error:
        raise ConfigError("--from", manual_dir, str(error)) from error


def _check_directory(name: str, files: str) -> None:
    if not is_remote(files):
        if not pathlib.Path(files).is_dir():
            raise ConfigError("--from", files, "is not a directory")
        return
    able = [known for known in DATASETS if getattr(DATASETS[known], "READS_REMOTE", False)]
    if name not in able:
        expected = f"must be a local directory; remote ones are for {', '.join(able)}"
        raise ConfigError("--from", files, expected)


def _make(
    make: Callable[[], Builder],
    name: str,
    manual_dir: str | None,
    partial: bool,
    processes: int | None,
) -> Builder:
    # Data sets of `DATASETS` that take files know their directory, which may be remote.
    own = manual_dir is None or takes_files(name)
    config = tfds.download.DownloadConfig(manual_dir=None if own else manual_dir)
    try:
        builder = prepare_once(make, processes, download_config=config)
    except (ConfigError, DatasetError):
        raise
    except Exception as error:
        if name in DATASETS and not isinstance(error, _UNUSABLE):
            # A bug of a data set that is registered here.
            raise
        # TFDS's own code raises anything for files that are missing, damaged or of another form.
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError("data set", name, f"{_instructions(make())} ({cause})") from error
    try:
        sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
        official.check_numbers(name, sizes, partial)
    except DatasetError:
        # It would be taken for the whole data set from now on.
        epath.Path(builder.data_path).rmtree()
        raise
    return builder


def _trust_local_files(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> None:
    """Replaces the checksums of files that are there: distributors compress files again."""
    # TFDS keeps one dictionary for its builder's class, and passes it to the download manager.
    infos = builder.url_infos or {}
    for url, info in list(infos.items()):
        path = directory / (info.filename or url.rpartition("/")[2])
        if not path.is_file():
            continue
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != info.checksum:
            logging.warning("%s is not byte for byte the official file; it is used as it is", path)
        infos[url] = UrlInfo(Size(path.stat().st_size), checksum, path.name)


def _instructions(builder: tfds.core.DatasetBuilder) -> str:
    """Returns a sentence on which files are needed, and where to put them."""
    text = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if text:
        return f"needs files that you must download: {' '.join(text.split())} Then give --from=DIR"
    names = sorted(info.filename for info in (builder.url_infos or {}).values() if info.filename)
    if not names:
        return "cannot be prepared"
    return f"needs {', '.join(names)}; from a directory with these files prepare it by --from=DIR"
