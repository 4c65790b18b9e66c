"""TFDS builder of ImageNet-21k, which TFDS itself does not have."""

import functools
import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.official import files_of, open_member, read_member

NUM_CLASSES = 21_843
ARCHIVE = "fall11_whole.tar"


@DATASETS.register("imagenet21k")
class Imagenet21k(tfds.core.GeneratorBasedBuilder):
    """All of ImageNet (Deng et al., CVPR 2009); a label is the rank of its synset by name."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One split, full."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{ARCHIVE}, or the archives n*.tar of its classes, from "
        "https://image-net.org/download-images, where you must register."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    # As many as the released models have outputs, some of which are unused.
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"full": self._generate_examples(pathlib.Path(dl_manager.manual_dir))}

    def _generate_examples(self, directory: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
        labels = {synset: label for label, synset in enumerate(class_names(directory))}
        for synset, open_archive in _class_archives(directory):
            with open_archive() as file, tarfile.open(fileobj=file) as images:
                for member in files_of(images, f"{synset}.tar"):
                    example = {
                        "image": read_member(images, member),
                        "label": labels[synset],
                        "file_name": member.name,
                    }
                    yield member.name, example


def class_names(directory: pathlib.Path) -> list[str]:
    """Returns the synsets whose archives are in a directory, sorted.

    Raises:
      FileNotFoundError: If there are none.
      DatasetError: If there are too many, or the archive of archives is damaged.
    """
    synsets = sorted(synset for synset, _ in _class_archives(directory))
    if not synsets:
        raise FileNotFoundError(f"{directory} has no {ARCHIVE}, nor archives n*.tar of classes")
    if len(synsets) > NUM_CLASSES:
        raise DatasetError(f"{directory} has {len(synsets):,} archives of classes")
    return synsets


def _class_archives(
    directory: pathlib.Path,
) -> Iterator[tuple[str, Callable[[], io.BufferedReader]]]:
    """Yields each class and a function that opens its archive until the next one is yielded."""
    whole = directory / ARCHIVE
    if not whole.exists():
        for path in sorted(directory.glob("n*.tar")):
            yield path.stem, functools.partial(path.open, "rb")
        return
    with tarfile.open(whole) as classes:
        for member in files_of(classes, str(whole)):
            yield pathlib.Path(member.name).stem, functools.partial(open_member, classes, member)
