"""Base of data sets that are made from a user's own files in some format."""

import abc
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from vmoe_prc.data.class_folders import SPLIT_NAMES, TEST_ONE_IN, summarize
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.examples import features_of
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.remote import SourcePath, is_remote, read_file, relative, source_path

LEFT_OUT_FILE = "left_out.json"


class Labelled(NamedTuple):
    """An image of a source file.

    Attributes:
      name: Its name, unique in its split.
      image: Encoded image.
      label: Its class, by number or by name.
    """

    name: str
    image: bytes
    label: int | str


class ImageFiles(tfds.core.GeneratorBasedBuilder, abc.ABC):
    """A data set of images and classes from files in a directory.

    A file belongs to the split that its name begins with (`train-00000.parquet`), or that its
    folder is named after, see `SPLIT_NAMES`. If there are no files of a test split, about every
    tenth image, chosen by its name, is a test image. Images that cannot be decoded are left out,
    logged, and listed in `LEFT_OUT_FILE`.

    Args:
      manual_dir: The directory, local or of fsspec, see `remote`. The data set is prepared again
        when a file changes.
      data_dir: Where the prepared records go.

    Attributes:
      SUFFIXES: Ends of the names of its files.
      READS_REMOTE: Whether `manual_dir` may be remote.

    Raises:
      DatasetError: If the directory has no such files.
    """

    VERSION = tfds.core.Version("1.0.0")
    SUFFIXES: tuple[str, ...] = ()
    READS_REMOTE = True

    def __init__(self, manual_dir: str | None = None, data_dir: str | None = None):
        if manual_dir is None:
            raise DatasetError(f"the data set {self.name!r} needs the directory of its files here")
        self._root = source_path(manual_dir)
        self._files = _files_by_split(self._root, self.SUFFIXES)
        self._unreadable: list[tuple[str, str]] = []
        config = tfds.core.BuilderConfig(name=self._digest(times=True))
        super().__init__(config=config, data_dir=data_dir)

    @abc.abstractmethod
    def read(self, path: SourcePath) -> Iterator[Labelled]:
        """Reads the images of a file.

        Raises:
          DatasetError: If it is not of the format.
        """

    @abc.abstractmethod
    def find_classes(self, files: Sequence[SourcePath]) -> list[str]:
        """Returns the names of the classes; numbered classes are named by their numbers.

        Raises:
          DatasetError: If a file is not of the format.
        """

    @property
    def content_digest(self) -> str:
        """Digest of names and sizes of the files; equal for a copy of the directory."""
        return self._digest(times=False)

    def _digest(self, times: bool) -> str:
        entries = []
        for split, paths in sorted(self._files.items()):
            for path in paths:
                status, place = path.stat(), relative(path, self._root)
                own = [str(path), status.st_mtime_ns] if times else [place]
                entries.append([split, *own, status.st_size])
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]

    def _info(self) -> tfds.core.DatasetInfo:
        # TFDS restores the names of a prepared data set from its files.
        prepared = (pathlib.Path(self.data_dir) / "dataset_info.json").exists()
        files = [path for paths in self._files.values() for path in paths]
        label = tfds.features.ClassLabel(names=None if prepared else self.find_classes(files))
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": label,
            "file_name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if "test" in self._files:
            return {split: self._generate(paths) for split, paths in self._files.items()}
        [paths] = self._files.values()
        return {
            "train": self._generate(paths, test=False),
            "test": self._generate(paths, test=True),
        }

    def _generate_examples(self, paths: Sequence[SourcePath]) -> Iterator[Any]:
        return self._generate(paths)

    def _generate(
        self, paths: Sequence[SourcePath], test: bool | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        count = 0
        for path in paths:
            for name, image, label in self.read(path):
                if test is not None and test != (zlib.crc32(name.encode()) % TEST_ONE_IN == 0):
                    continue
                key = f"{relative(path, self._root)}/{name}"
                try:
                    features_of(self)["label"].encode_example(label)
                except (KeyError, ValueError) as error:
                    raise DatasetError(f"{key}: {label!r} is none of the classes") from error
                try:
                    decode_image(image)
                except BadExampleError as error:
                    self._unreadable.append((key, f"unreadable ({error})"))
                    continue
                count += 1
                yield key, {"image": image, "label": label, "file_name": key}
        if not count:
            reasons = "; ".join(summarize(self._unreadable)) or "there are none"
            raise DatasetError(f"{self._root}: no image of a split can be read: {reasons}")

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        self._unreadable = []
        super()._download_and_prepare(*args, **kwargs)
        path = pathlib.Path(self.data_dir) / LEFT_OUT_FILE
        path.write_text(json.dumps(self._unreadable, indent=1))
        for line in summarize(self._unreadable):
            logging.warning("%s: %s", self._root, line)


def _files_by_split(root: SourcePath, suffixes: Sequence[str]) -> dict[str, list[SourcePath]]:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a directory")
    found: dict[str, list[SourcePath]] = {}
    for path in sorted(root.rglob("*")):
        if path.name.lower().endswith(tuple(suffixes)) and path.is_file():
            found.setdefault(_split_of(relative(path, root)), []).append(path)
    if not found:
        raise DatasetError(f"{root} has no file {' or '.join('*' + s for s in suffixes)}")
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if "test" in found and "train" not in found:
        raise DatasetError(f"{root} has files of the split test, and none of train")
    return found


def _split_of(path: str) -> str:
    """Returns the split that a file or one of its folders is named after; `train` if none is."""
    for part in reversed(path.split("/")):
        word = "".join(c if c.isalpha() else " " for c in part.lower()).split()
        for split, names in SPLIT_NAMES.items():
            if word and word[0] in names:
                return split
    return "train"


def classes_of(labels: Sequence[int | str]) -> list[str]:
    """Returns the names of classes: of numbers 0 to the largest one, else the sorted names.

    Raises:
      DatasetError: If there are fewer than two, or negative numbers.
    """
    kinds = {type(label) for label in labels}
    numbers = [label for label in labels if isinstance(label, int)]
    if kinds == {int}:
        if min(numbers) < 0 or max(numbers) >= 10**6:
            raise DatasetError(f"labels are from {min(numbers)} to {max(numbers)}, not from 0 on")
        names = [str(i) for i in range(max(numbers) + 1)]
    elif kinds == {str}:
        names = sorted({str(label) for label in labels})
    else:
        raise DatasetError(
            f"labels are {', '.join(sorted(k.__name__ for k in kinds)) or 'missing'}"
        )
    if len(names) < 2:
        raise DatasetError(f"there is only one class: {names[0]}")
    return names


def to_label(value: Any, place: str) -> int | str:
    """Turns the label of a file into a number or a name.

    Raises:
      DatasetError: If it is neither.
    """
    if isinstance(value, bool) or value is None:
        raise DatasetError(f"{place}: the label is {value!r}")
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else text
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "dtype", None) is not None:
        return to_label(item(), place)
    raise DatasetError(f"{place}: the label {value!r} is neither a number nor a name")


def read_below(root: SourcePath, path: str, place: str) -> bytes:
    """Reads a file that another one names, relative to a directory, or by its address.

    Raises:
      DatasetError: If it cannot be read.
    """
    if is_remote(path):
        return read_file(path)
    file = root / os.path.expanduser(path)
    try:
        if not file.is_file():
            raise DatasetError(f"{place}: {path!r} is no file")
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{place}: {path!r} cannot be read: {error}") from error
