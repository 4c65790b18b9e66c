"""TFDS builder of Parquet files with encoded images, as Hugging Face `datasets` writes them."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.datasets.image_files import ImageFiles, Labelled, classes_of, to_label
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.remote import SourcePath

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")
ROWS = 256


@DATASETS.register("parquet")
class Parquet(ImageFiles):
    """Rows with the bytes of an image, or a struct that has them in `bytes`, and a label.

    The columns are the first of `IMAGE_COLUMNS` and `LABEL_COLUMNS` that exist; names of classes
    come from the Hugging Face metadata, if there are any.
    """

    RELEASE_NOTES: ClassVar = {"1.0.0": "Parquet files of Hugging Face datasets."}
    SUFFIXES = (".parquet",)

    def read(self, path: SourcePath) -> Iterator[Labelled]:
        """Reads the images of a file."""
        image, label = _columns(path)
        row = 0
        for batch in _open(path).iter_batches(ROWS, columns=[image, label]):
            for images, labels in zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True):
                data = images.get("bytes") if isinstance(images, dict) else images
                if not isinstance(data, bytes):
                    raise DatasetError(f"{path}, row {row}: {image!r} has no bytes of an image")
                yield Labelled(f"{row:08d}", data, to_label(labels, f"{path}, row {row}"))
                row += 1

    def find_classes(self, files: Sequence[SourcePath]) -> list[str]:
        """Returns the names of the classes."""
        _, label = _columns(files[0])
        metadata = (_open(files[0]).schema_arrow.metadata or {}).get(b"huggingface")
        if metadata:
            feature = json.loads(metadata).get("info", {}).get("features", {}).get(label, {})
            if names := feature.get("names"):
                return list(names)
        values = set()
        for path in files:
            for value in _open(path).read([_columns(path)[1]]).column(0).unique().to_pylist():
                values.add(to_label(value, str(path)))
        return classes_of(list(values))


def _open(path: SourcePath) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError("Parquet files need pyarrow: pip install pyarrow") from error
    try:
        source = path if isinstance(path, pathlib.Path) else path.open("rb")
        return pyarrow.parquet.ParquetFile(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _columns(path: SourcePath) -> tuple[str, str]:
    names = _open(path).schema_arrow.names
    found = []
    for allowed in (IMAGE_COLUMNS, LABEL_COLUMNS):
        column = next((name for name in allowed if name in names), None)
        if column is None:
            raise DatasetError(
                f"{path} has the columns {', '.join(names)}, and none of {', '.join(allowed)}"
            )
        found.append(column)
    return found[0], found[1]
