"""TFDS builder of a user's own images in class folders."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.class_folders import ImageFile, scan_class_folders, summarize
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.remote import relative

LEFT_OUT_FILE = "left_out.json"
# Classes whose numbers of images are logged one by one.
MOST_CLASSES = 50


@DATASETS.register("folder")
class Folder(tfds.core.GeneratorBasedBuilder):
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
        self._unreadable: list[tuple[str, str]] = []
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

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        _log_counts(self._folders.counts())
        for line in self._folders.warnings():
            logging.warning("%s: %s", self._folders.root, line)
        return {
            split: self._generate_examples(split, files)
            for split, files in self._folders.splits.items()
        }

    def _generate_examples(
        self, split: str, files: Sequence[ImageFile]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        count = 0
        for file in files:
            name = relative(file.path, self._folders.root)
            try:
                image = file.path.read_bytes()
                decode_image(image)
            except (BadExampleError, OSError) as error:
                self._unreadable.append((name, f"unreadable ({error})"))
                continue
            count += 1
            yield name, {"image": image, "label": file.label, "file_name": name}
        if not count:
            reasons = "; ".join(summarize(self._unreadable))
            raise DatasetError(f"no image of the split {split} can be read: {reasons}")

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        self._unreadable = []
        super()._download_and_prepare(*args, **kwargs)
        left_out = [*self._folders.left_out, *self._unreadable]
        (pathlib.Path(self.data_dir) / LEFT_OUT_FILE).write_text(json.dumps(left_out, indent=1))
        for line in summarize(self._unreadable):
            logging.warning("%s: %s", self._folders.root, line)


def _log_counts(counts: dict[str, dict[str, int]]) -> None:
    lines = [
        f"{name}: " + ", ".join(f"{count:,} {split}" for split, count in by_split.items())
        for name, by_split in list(counts.items())[:MOST_CLASSES]
    ]
    if len(counts) > MOST_CLASSES:
        lines.append(f"and {len(counts) - MOST_CLASSES} more classes")
    logging.info("%d classes\n%s", len(counts), "\n".join(lines))
