"""TFDS builder of a user's own images in class folders."""

import json
import os
import pathlib
from typing import ClassVar

import tensorflow_datasets as tfds
from absl import logging

from vmoe_prc.data.class_folders import ClassFolders, scan_class_folders
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import BadExampleError

SKIPPED_FILE = "skipped.json"


class Folder(tfds.core.GeneratorBasedBuilder):
    """Images of a directory; files that cannot be decoded are skipped, counted and listed.

    Args:
      manual_dir: The directory, see `scan_class_folders`. Prepared again when it changes.
      data_dir: Where the prepared records go.

    Raises:
      ValueError: If the directory does not hold class folders.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Class folders, with or without train/ and test/."}

    def __init__(self, manual_dir: str | None = None, data_dir: str | None = None):
        if manual_dir is None:
            raise ValueError("the data set 'folder' needs the directory of the images here")
        self._files: ClassFolders = scan_class_folders(manual_dir)
        self._skipped: list[str] = []
        config = tfds.core.BuilderConfig(name=self._files.digest)
        super().__init__(config=config, data_dir=data_dir)

    @property
    def skipped(self) -> list[str]:
        """Files that could not be decoded when the data set was prepared."""
        path = pathlib.Path(self.data_dir) / SKIPPED_FILE
        return json.loads(path.read_text()) if path.exists() else []

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(self._files.classes)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {
            split: self._generate_examples(files) for split, files in self._files.splits.items()
        }

    def _generate_examples(self, files: list[tuple[pathlib.Path, int]]):
        for path, label in files:
            image = path.read_bytes()
            try:
                decode_image(image)
            except BadExampleError:
                self._skipped.append(os.fspath(path))
                continue
            name = os.fspath(path)
            yield name, {"image": image, "label": label, "file_name": name}

    def _download_and_prepare(self, *args, **kwargs) -> None:
        super()._download_and_prepare(*args, **kwargs)
        (pathlib.Path(self.data_dir) / SKIPPED_FILE).write_text(json.dumps(self._skipped))
        if self._skipped:
            logging.warning(
                "%d of %d files are no images and are left out: %s",
                len(self._skipped),
                sum(map(len, self._files.splits.values())),
                ", ".join(self._skipped),
            )
