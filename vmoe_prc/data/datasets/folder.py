"""TFDS builder of a user's own images in class folders."""

import json
import pathlib
from collections.abc import Callable
from typing import ClassVar

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.image_lists import Item
from vmoe_prc.data.remote import relative
from vmoe_prc.data.shards import LEFT_OUT_FILE, ImageListBuilder

# Classes whose numbers of images are logged one by one.
MOST_CLASSES = 50


@DATASETS.register("folder")
class Folder(ImageListBuilder):
    """Images of a directory; what is left out is logged and kept in `LEFT_OUT_FILE`.

    Args:
      manual_dir: The directory, see `scan_class_folders`. Prepared again when it changes.
      data_dir: Where the prepared records go.

    Raises:
      DatasetError: If the directory does not hold class folders.
    """

    VERSION = tfds.core.Version("2.0.0")
    READS_REMOTE = True
    RELEASE_NOTES: ClassVar = {"2.0.0": "Usual names of splits, more formats, file names relative."}

    def __init__(self, manual_dir: str | None = None, data_dir: str | None = None):
        if manual_dir is None:
            raise DatasetError("the data set 'folder' needs the directory of the images here")
        self._folders = scan_class_folders(manual_dir)
        config = tfds.core.BuilderConfig(name=self._folders.state)
        super().__init__(config=config, data_dir=data_dir)

    @property
    def content_digest(self) -> str:
        """Digest of names, classes and sizes of the files; equal for a copy of the directory."""
        return self._folders.content

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(path, reason) of files and folders that the prepared data set lacks."""
        path = pathlib.Path(self.data_dir) / LEFT_OUT_FILE
        return [tuple(entry) for entry in json.loads(path.read_text())] if path.exists() else []

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(self._folders.classes)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def list_items(self, manual_dir: Callable[[], epath.Path]) -> dict[str, list[Item]]:
        """Lists the images of each split."""
        del manual_dir
        _log_counts(self._folders.counts())
        for line in self._folders.warnings():
            logging.warning("%s: %s", self._folders.root, line)
        return {
            split: [
                Item(relative(x.path, self._folders.root), x.label, str(x.path), x.size)
                for x in files
            ]
            for split, files in self._folders.splits.items()
        }

    def list_left_out(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of files and folders that are not used."""
        return list(self._folders.left_out)


def _log_counts(counts: dict[str, dict[str, int]]) -> None:
    lines = [
        f"{name}: " + ", ".join(f"{count:,} {split}" for split, count in by_split.items())
        for name, by_split in list(counts.items())[:MOST_CLASSES]
    ]
    if len(counts) > MOST_CLASSES:
        lines.append(f"and {len(counts) - MOST_CLASSES} more classes")
    logging.info("%d classes\n%s", len(counts), "\n".join(lines))
