"""Official numbers of examples and names of files, compared before data are used.

TFDS prepares any files that are in the archives. A train archive that was cut makes a smaller data
set, and one validation file more or less shifts all labels after it: they are paired by order.
"""

import io
import pathlib
import stat
import tarfile
from collections.abc import Iterator, Mapping
from typing import cast

from vmoe_prc.data.errors import DatasetError

# Examples of each split, from the web pages of the data sets.
NUM_EXAMPLES: Mapping[str, Mapping[str, int]] = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
}
IMAGENET_VALIDATION = "ILSVRC2012_img_val.tar"
IMAGENET_VALIDATION_IMAGES = 50_000
# Classes of fall11_whole.tar.
IMAGENET21K_CLASSES = 21_841
_BLOCK = 512


def check_files(name: str, directory: pathlib.Path, partial: bool) -> None:
    """Checks the files that a data set is to be made from, as far as that is quick.

    Args:
      name: Name of the data set.
      directory: Directory of the files.
      partial: Whether a part of the data set will do.

    Raises:
      DatasetError: If a file cannot be used, or is incomplete.
    """
    for path in sorted(directory.iterdir()):
        mode = path.stat().st_mode if path.exists() else 0
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DatasetError(f"{path} is no regular file")
    validation = directory / IMAGENET_VALIDATION
    if name.partition(":")[0] == "imagenet2012" and validation.exists():
        _check_imagenet_validation(validation, partial)


def files_of(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the files of an archive.

    `tarfile` takes a damaged header, and a cut between files, for the end of the archive: here
    they are errors.

    Raises:
      DatasetError: If the archive is cut or damaged.
    """
    try:
        yield from filter(tarfile.TarInfo.isfile, archive)
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        end = archive.fileobj.read(_BLOCK)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{name} is damaged: {error}") from error
    if end != bytes(_BLOCK):
        raise DatasetError(f"{name} is cut or damaged after {archive.offset:,} bytes")


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the bytes of a file of `files_of`."""
    return open_member(archive, member).read()


def open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedReader:
    """Opens a file of `files_of`."""
    file = archive.extractfile(member)
    if file is None:
        raise DatasetError(f"{member.name} is no file")
    return cast("io.BufferedReader", file)


def check_classes(count: int) -> None:
    """Checks the number of classes of ImageNet-21k.

    Raises:
      DatasetError: If some are missing.
    """
    if count < IMAGENET21K_CLASSES:
        raise DatasetError(
            f"{count:,} classes of {IMAGENET21K_CLASSES:,} are there; --partial takes them; "
            "labels then count these classes only"
        )


def check_numbers(name: str, sizes: Mapping[str, int], partial: bool) -> None:
    """Checks the numbers of examples.

    Args:
      name: Name of the data set.
      sizes: Examples of each split.
      partial: Whether fewer will do.

    Raises:
      DatasetError: If they differ from the numbers of the data set.
    """
    for split, expected in NUM_EXAMPLES.get(name.partition(":")[0].partition("/")[0], {}).items():
        found = sizes.get(split, 0)
        if found > expected or (found < expected and not partial):
            hint = "" if found > expected else "; --partial takes what is there"
            raise DatasetError(f"{split} has {found:,} examples, not {expected:,}{hint}")


def _check_imagenet_validation(path: pathlib.Path, partial: bool) -> None:
    """Checks names and order: TFDS gives image i the i-th label of a list."""
    try:
        with tarfile.open(path) as archive:
            names = [pathlib.PurePosixPath(x.name).name for x in files_of(archive, str(path))]
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    for number, name in enumerate(sorted(names), 1):
        if name != (expected := f"ILSVRC2012_val_{number:08d}.JPEG"):
            raise DatasetError(
                f"{path} has {name} where {expected} is expected: each image behind it would get "
                "the label of another one"
            )
    if len(names) < IMAGENET_VALIDATION_IMAGES and not partial:
        raise DatasetError(
            f"{path} has {len(names):,} images, not {IMAGENET_VALIDATION_IMAGES:,}; --partial "
            "takes what is there"
        )
