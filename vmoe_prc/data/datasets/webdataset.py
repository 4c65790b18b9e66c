"""TFDS builder of WebDataset shards: tar files with the files of an example side by side."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.class_folders import IMAGE_SUFFIXES
from vmoe_prc.data.datasets.image_files import ImageFiles, Labelled, classes_of, to_label
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.official import files_of, read_member
from vmoe_prc.data.remote import SourcePath

LABEL_KEYS = ("label", "cls", "class")


@DATASETS.register("webdataset")
class Webdataset(ImageFiles):
    """Shards *.tar: KEY.jpg, or another image, with KEY.cls, KEY.txt or a `label` in KEY.json."""

    RELEASE_NOTES: ClassVar = {"1.0.0": "Tar files of WebDataset."}
    SUFFIXES = (".tar",)

    def read(self, path: SourcePath) -> Iterator[Labelled]:
        """Reads the images of a shard."""
        for key, parts in _examples(path, images=True):
            image = next((parts[s] for s in IMAGE_SUFFIXES if s in parts), None)
            if image is not None:
                yield Labelled(key, image, _label(parts, f"{path}, {key}"))

    def find_classes(self, files: Sequence[SourcePath]) -> list[str]:
        """Returns the names of the classes: of all shards the labels are read."""
        labels = {
            _label(parts, f"{path}, {key}")
            for path in files
            for key, parts in _examples(path, images=False)
            if any(suffix in parts for suffix in IMAGE_SUFFIXES)
        }
        return classes_of(list(labels))


def _examples(path: SourcePath, images: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields the key and the files by suffix of each example; without `images`, empty ones."""
    key, parts = "", {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as archive:
            for member in files_of(archive, str(path)):
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                stem, suffix = f"{member.name.rpartition('/')[0]}/{stem}", f".{suffix.lower()}"
                if stem != key and parts:
                    yield key.lstrip("/"), parts
                if stem != key:
                    key, parts = stem, {}
                wanted = images or suffix not in IMAGE_SUFFIXES
                parts[suffix] = read_member(archive, member) if wanted else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if parts:
        yield key.lstrip("/"), parts


def _label(parts: dict[str, bytes], place: str) -> int | str:
    for suffix in (".cls", ".txt"):
        if suffix in parts:
            return to_label(parts[suffix].decode("utf-8", "replace"), place)
    if ".json" in parts:
        try:
            record: Any = json.loads(parts[".json"])
        except ValueError as error:
            raise DatasetError(f"{place}: .json cannot be read: {error}") from error
        for key in LABEL_KEYS:
            if isinstance(record, dict) and key in record:
                return to_label(record[key], place)
    raise DatasetError(f"{place} has no label: neither .cls, .txt, nor `label` in .json")
