"""Prepares data sets for training.

    python -m vmoe_prc.data.prepare cifar10
    python -m vmoe_prc.data.prepare fashion_mnist --from=/usr/share/datasets/fashion-mnist

Files that lie in the directory `--from` are taken instead of being downloaded.
"""

import hashlib
import os
import pathlib
import sys
import tarfile

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags, logging

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.data.datasets import OWN_BUILDERS
from vmoe_prc.runtime.logs import setup_logging

_FROM = flags.DEFINE_string("from", None, "Directory with files that were downloaded by hand.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where to write; by default TFDS's own place.")

# What TFDS raises for files that are missing, cannot be downloaded or are damaged.
_UNUSABLE = (
    AssertionError,
    EOFError,
    OSError,
    tarfile.TarError,
    tf.errors.OpError,
    tfds.core.download.extractor.ExtractError,
    tfds.download.DownloadError,
)


def prepare(
    name: str,
    files: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> tfds.core.DatasetBuilder:
    """Prepares a data set as TFRecord files, unless that is done already.

    Args:
      name: Name in TFDS, or one of our own.
      files: Directory with files of the data set; those that are missing are downloaded.
      data_dir: Where to write.

    Raises:
      ConfigError: If the data set is unknown, or files that it needs are missing.
    """
    if files is not None and not pathlib.Path(files).is_dir():
        raise ConfigError("--from", str(files), "is not a directory")
    if name in OWN_BUILDERS:
        manual = {} if files is None else {"manual_dir": os.fspath(files)}
        try:
            builder = OWN_BUILDERS[name](data_dir=data_dir and os.fspath(data_dir), **manual)
        except (TypeError, ValueError) as error:
            raise ConfigError("--from", str(files), str(error)) from None
    else:
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            known = [*OWN_BUILDERS, *tfds.list_builders()]
            raise ConfigError("data set", name, "unknown", nearest(name, known)) from None
    if files is not None:
        _trust_local_files(builder, pathlib.Path(files))
    elif not builder.is_prepared() and builder.url_infos:
        # Said first, since it takes minutes until TFDS gives up on a server.
        logging.info("downloading: %s %s", name, _instructions(builder))
    config = tfds.download.DownloadConfig(manual_dir=files and os.fspath(files))
    try:
        builder.download_and_prepare(
            download_config=config, file_format=tfds.core.FileFormat.TFRECORD
        )
    except _UNUSABLE as error:
        cause = " ".join(str(error).split())
        raise ConfigError("data set", name, f"{_instructions(builder)} ({cause})") from error
    return builder


def _trust_local_files(builder: tfds.core.DatasetBuilder, directory: pathlib.Path) -> None:
    """Lets local files have checksums of their own: distributors compress anew."""
    # TFDS keeps one dictionary for its builder's class, and passes it to the download manager.
    infos = builder.url_infos or {}
    for url, info in list(infos.items()):
        path = directory / (info.filename or url.rpartition("/")[2])
        if not path.is_file():
            continue
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != info.checksum:
            logging.warning("%s is not byte for byte the official file; it is taken as it is", path)
        infos[url] = tfds.download.checksums.UrlInfo(
            size=path.stat().st_size, checksum=checksum, filename=path.name
        )


def _instructions(builder: tfds.core.DatasetBuilder) -> str:
    """Says which files to put where."""
    text = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if text:
        return f"needs files that you must download: {' '.join(text.split())} Then give --from=DIR"
    names = sorted(info.filename for info in (builder.url_infos or {}).values() if info.filename)
    if not names:
        return "cannot be prepared"
    return f"needs {', '.join(names)}; from a directory with these files prepare it by --from=DIR"


def main(argv: list[str]) -> None:
    """Prepares the data sets that are named."""
    if len(argv) < 2:
        raise app.UsageError("name a data set, such as cifar10")
    setup_logging()
    for name in argv[1:]:
        builder = prepare(name, _FROM.value, _DATA_DIR.value)
        for split, info in builder.info.splits.items():
            print(f"{name} {split}: {info.num_examples:,} examples in {builder.data_path}")


def run() -> None:
    """Entry point: what cannot be prepared becomes one line on stderr and exit status 2."""
    try:
        app.run(main)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
