"""TFDS builder of ImageNet-21k, which TFDS itself does not have."""

import contextlib
import itertools
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.image_lists import Item
from vmoe_prc.data.jobs import run_jobs
from vmoe_prc.data.official import files_of, open_member
from vmoe_prc.data.shards import ImageListBuilder
from vmoe_prc.runtime.cores import num_cores

NUM_CLASSES = 21_843
ARCHIVE = "fall11_whole.tar"
# Archives of classes that another process is started for.
ARCHIVES_PER_PROCESS = 500


@DATASETS.register("imagenet21k")
class Imagenet21k(ImageListBuilder):
    """All of ImageNet (Deng et al., CVPR 2009); a label is the rank of its synset by name."""

    CHECKED = False
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

    def list_items(self, manual_dir: Callable[[], epath.Path]) -> dict[str, Iterator[Item]]:
        """Finds the images in the archives of all classes."""
        directory = pathlib.Path(manual_dir())
        labels = {synset: label for label, synset in enumerate(class_names(directory))}
        archives = [
            Archive(labels[synset], path, offset, size)
            for synset, path, offset, size in _archives(directory)
        ]
        processes = min(self.processes or num_cores(), len(archives) // ARCHIVES_PER_PROCESS)
        found = run_jobs(find_images, archives, processes)
        return {"full": itertools.chain.from_iterable(found)}


class Archive(NamedTuple):
    """The archive of a class, which may be in another archive.

    Attributes:
      label: The class.
      path: The file.
      offset: Where the archive begins in it.
      size: Its bytes.
    """

    label: int
    path: str
    offset: int
    size: int


def find_images(archive: Archive) -> list[Item]:
    """Finds where the images of a class are.

    Raises:
      DatasetError: If the archive is cut or damaged.
    """
    # Of an uncompressed archive in another one `tarfile` needs the place only.
    whole = tarfile.TarInfo(archive.path)
    whole.offset_data, whole.size = archive.offset, archive.size
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(archive.path, "rb"))
        if archive.offset:
            outer = stack.enter_context(tarfile.open(fileobj=file))
            file = open_member(outer, whole)
        name = f"{archive.path}, class {archive.label}" if archive.offset else archive.path
        try:
            images = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
        except (tarfile.TarError, EOFError) as error:
            raise DatasetError(f"{name} is damaged: {error}") from error
        return [
            Item(
                *(member.name, archive.label, archive.path, member.size),
                archive.offset + member.offset_data,
            )
            for member in files_of(images, name)
        ]


def class_names(directory: pathlib.Path) -> list[str]:
    """Returns the synsets whose archives are in a directory, sorted.

    Raises:
      FileNotFoundError: If there are none.
      DatasetError: If there are too many, or the archive of archives is damaged.
    """
    synsets = sorted(synset for synset, *_ in _archives(directory))
    if not synsets:
        raise FileNotFoundError(f"{directory} has no {ARCHIVE}, nor archives n*.tar of classes")
    if len(synsets) > NUM_CLASSES:
        raise DatasetError(f"{directory} has {len(synsets):,} archives of classes")
    return synsets


def _archives(directory: pathlib.Path) -> Iterator[tuple[str, str, int, int]]:
    """Yields (synset, path, offset, size) of the archive of each class."""
    whole = directory / ARCHIVE
    if not whole.exists():
        for path in sorted(directory.glob("n*.tar")):
            yield path.stem, str(path), 0, path.stat().st_size
        return
    with tarfile.open(whole) as classes:
        for member in files_of(classes, str(whole)):
            yield pathlib.Path(member.name).stem, str(whole), member.offset_data, member.size
