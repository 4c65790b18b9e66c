"""TFDS builder of lists of image files and their labels: CSV, TSV or JSON lines."""

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.datasets.image_files import (
    ImageFiles,
    Labelled,
    classes_of,
    read_below,
    to_label,
)
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.remote import SourcePath

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "category")


@DATASETS.register("listing")
class Listing(ImageFiles):
    """Lists with a header: a path, relative to the list, and a label per line."""

    RELEASE_NOTES: ClassVar = {"1.0.0": "CSV, TSV and JSON lines."}
    SUFFIXES = (".csv", ".tsv", ".jsonl")

    def read(self, path: SourcePath) -> Iterator[Labelled]:
        """Reads the images that a list names."""
        for number, (file, label) in enumerate(_entries(path), 1):
            yield Labelled(f"{number:08d}/{file}", read_below(path.parent, file, str(path)), label)

    def find_classes(self, files: Sequence[SourcePath]) -> list[str]:
        """Returns the names of the classes."""
        return classes_of(list({label for path in files for _, label in _entries(path)}))


def _entries(path: SourcePath) -> Iterator[tuple[str, int | str]]:
    for number, row in enumerate(_rows(path), 2 if path.suffix != ".jsonl" else 1):
        place = f"{path}, line {number}"
        if not isinstance(row, dict):
            raise DatasetError(f"{place}: expected an object with a path and a label")
        file = next((row[name] for name in PATH_COLUMNS if row.get(name)), None)
        label = next((row[name] for name in LABEL_COLUMNS if row.get(name) is not None), None)
        if not isinstance(file, str) or label is None:
            raise DatasetError(
                f"{place} must have one of {', '.join(PATH_COLUMNS)} and one of "
                f"{', '.join(LABEL_COLUMNS)}"
            )
        yield file, to_label(label, place)


def _rows(path: SourcePath) -> Iterator[Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
            else:
                delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
                yield from csv.DictReader(file, delimiter=delimiter)
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
