"""A user's own images: one folder a class, in train/ and test/, or undivided."""

import dataclasses
import os
import pathlib
import zlib

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
# The share of undivided images that becomes the test split.
TEST_ONE_IN = 10


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The image files of a directory.

    Attributes:
      classes: Names of the classes, sorted; a label is a position in it.
      splits: (path, label) of the files of `train` and `test`.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[pathlib.Path, int]]]

    @property
    def digest(self) -> str:
        """Changes whenever a file is added, removed or written anew."""
        total = 0
        for split, files in self.splits.items():
            for path, label in files:
                status = path.stat()
                entry = f"{split}|{path}|{label}|{status.st_size}|{status.st_mtime_ns}"
                total = zlib.crc32(entry.encode(), total)
        return f"{total:08x}"


def scan_class_folders(directory: str | os.PathLike[str]) -> ClassFolders:
    """Lists the images of DIR/train/CLASS and DIR/test/CLASS, or of DIR/CLASS.

    Without a folder `train`, about every tenth image, chosen by its name, is a test image.

    Args:
      directory: The directory; `val` or `validation` may stand for `test`.

    Raises:
      ValueError: If it does not exist, or has fewer than two classes with images.
    """
    root = pathlib.Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"{root} is not a directory")
    if (root / "train").is_dir():
        test = next((root / n for n in ("test", "val", "validation") if (root / n).is_dir()), None)
        if test is None:
            raise ValueError(f"{root} has a folder train, but none named test or val")
        folders = {"train": root / "train", "test": test}
    else:
        folders = {"": root}
    found = {split: _images(folder) for split, folder in folders.items()}
    classes = tuple(sorted({name for files in found.values() for name, _ in files}))
    if len(classes) < 2:
        raise ValueError(
            f"{root} must have a folder of images for each of two classes or more, or "
            f"train/CLASS and test/CLASS; images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    splits: dict[str, list[tuple[pathlib.Path, int]]] = {"train": [], "test": []}
    for split, files in found.items():
        for name, path in files:
            key = zlib.crc32(f"{name}/{path.name}".encode()) % TEST_ONE_IN
            splits[split or ("train" if key else "test")].append((path, classes.index(name)))
    for split, files in splits.items():
        if not files:
            raise ValueError(f"{root} has no image for the split {split}")
    return ClassFolders(classes, splits)


def _images(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    return [
        (path.relative_to(folder).parts[0], path)
        for path in sorted(folder.glob("*/**/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
