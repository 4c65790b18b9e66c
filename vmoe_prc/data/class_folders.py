"""A user's own images: one folder per class, split into train and test or not.

Nothing is left out silently: files and folders that are not used are listed with the reason.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.remote import SourcePath, relative, source_path

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png"),
    *(".tif", ".tiff", ".webp"),
)
# The share of images that becomes the test split where there is none.
TEST_ONE_IN = 10
# Usual names of the folders of a split, in lower case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
# Folders that systems and programs put anywhere; hidden ones begin with a dot.
SYSTEM_FOLDERS = frozenset(
    ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "system volume information")
)


class ImageFile(NamedTuple):
    """One image file.

    Attributes:
      path: The file.
      label: Position of its class in `ClassFolders.classes`.
      size: Its size in bytes.
      changed: Its time of change, in nanoseconds.
    """

    path: SourcePath
    label: int
    size: int
    changed: int


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The image files of a directory.

    Attributes:
      root: The directory.
      classes: Names of the classes, sorted; a label is a position in it.
      splits: Files of `train` and `test`, and of `validation` if there is such a folder in
        addition to `test`.
      left_out: (path, reason) of files and folders that are not used.
    """

    root: SourcePath
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[ImageFile]]
    left_out: Sequence[tuple[str, str]]

    @functools.cached_property
    def state(self) -> str:
        """Changes whenever a file is added, removed, moved or rewritten."""
        return self._digest(lambda file: [str(file.path), file.size, file.changed])

    @functools.cached_property
    def content(self) -> str:
        """Equal for copies of the directory: names, classes and sizes of the files."""
        return self._digest(lambda file: [relative(file.path, self.root), file.size])

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of files by class and split."""
        counts = {name: dict.fromkeys(self.splits, 0) for name in self.classes}
        for split, files in self.splits.items():
            for file in files:
                counts[self.classes[file.label]][split] += 1
        return counts

    def warnings(self) -> list[str]:
        """Returns a line per split that lacks classes, and per reason why files are left out."""
        lines, counts = [], self.counts()
        for split in self.splits:
            missing = [name for name, by_split in counts.items() if not by_split[split]]
            if missing:
                lines.append(f"no {split} image of {_some(missing)}")
        return lines + summarize(self.left_out)

    def _digest(self, entry: Callable[[ImageFile], list]) -> str:
        parts = {
            split: sorted([*entry(file), file.label] for file in files)
            for split, files in self.splits.items()
        }
        text = json.dumps([self.classes, parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def summarize(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """Returns one line per reason: how many files, and the first of them.

    Args:
      left_out: (path, reason) of each file.
    """
    by_reason = collections.defaultdict(list)
    for path, reason in left_out:
        by_reason[reason].append(path)
    return [f"left out, {reason}: {_some(paths)}" for reason, paths in by_reason.items()]


def scan_class_folders(directory: str | os.PathLike[str]) -> ClassFolders:
    """Lists the images of DIR/train/CLASS and DIR/test/CLASS, or of DIR/CLASS.

    Names of splits are listed in `SPLIT_NAMES`, in upper or lower case; `val` is the test split
    unless there is a folder `test`, too. Without any, about every tenth image of each class,
    chosen by its name, is a test image, at least one of each class that has two.

    Args:
      directory: The directory, local or of fsspec, see `remote`.

    Raises:
      DatasetError: If it does not exist, or has fewer than two classes with images.
    """
    root = source_path(directory)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a directory")
    scan = _Scan(root)
    folders = _split_folders(root)
    if folders:
        used = " and ".join(path.name for path in folders.values())
        for entry in _entries(root):
            if entry not in folders.values() and not scan.ignored(entry):
                scan.leave_out(entry, f"outside of {used}")
    found = {split: scan.classes_of(folder) for split, folder in (folders or {"": root}).items()}
    classes = tuple(sorted({name for by_class in found.values() for name in by_class}))
    if len(classes) < 2:
        raise DatasetError(_too_few(root, classes, scan.left_out))
    if folders.keys() <= {"train"}:
        [undivided] = found.values()
        found = _divided(undivided)
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [
            ImageFile(path, labels[name], size, changed)
            for name in sorted(by_class)
            for path, size, changed in by_class[name]
        ]
        for split, by_class in found.items()
    }
    for split, files in splits.items():
        if not files:
            raise DatasetError(f"{root} has no image for the split {split}")
    return ClassFolders(root, classes, splits, tuple(scan.left_out))


# Files of a class: (path, size, time of change).
_Found = dict[str, list[tuple[SourcePath, int, int]]]


class _Scan:
    """Walks through folders, and records files that it leaves out."""

    def __init__(self, root: SourcePath):
        self._root = root
        self.left_out: list[tuple[str, str]] = []

    def leave_out(self, path: SourcePath, reason: str) -> None:
        # Names that are not UTF-8 could be neither printed nor written.
        text = os.fsencode(relative(path, self._root)).decode("utf-8", "backslashreplace")
        self.left_out.append((text, reason))

    def ignored(self, path: SourcePath) -> bool:
        """Whether a file or folder is hidden or one of a system; notes it."""
        if path.name.startswith(".") or path.name.lower() in SYSTEM_FOLDERS:
            self.leave_out(path, "hidden, or a folder of the system")
            return True
        return False

    def classes_of(self, folder: SourcePath) -> _Found:
        """Returns the image files of each class that has any."""
        found: _Found = {}
        for entry in _entries(folder):
            if self.ignored(entry):
                continue
            if not entry.is_dir():
                self.leave_out(entry, "in no folder of a class")
                continue
            if not _is_utf8(entry.name):
                name = os.fsencode(str(entry)).decode("utf-8", "backslashreplace")
                raise DatasetError(f"the name of the folder {name} is not UTF-8; rename it")
            files = list(self._images(entry, frozenset()))
            if files:
                found[entry.name] = files
            else:
                self.leave_out(entry, "a folder without images")
        return found

    def _images(
        self, folder: SourcePath, parents: frozenset[str]
    ) -> Iterator[tuple[SourcePath, int, int]]:
        real = os.path.realpath(folder) if isinstance(folder, pathlib.Path) else str(folder)
        if real in parents:
            self.leave_out(folder, "a link to a folder that it is in")
            return
        for path in _entries(folder):
            if self.ignored(path):
                continue
            try:
                status = path.stat()
            except OSError as error:
                self.leave_out(path, "a broken link" if path.is_symlink() else str(error.strerror))
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._images(path, parents | {real})
            elif not stat.S_ISREG(status.st_mode):
                self.leave_out(path, "no regular file")
            elif not _is_utf8(path.name):
                self.leave_out(path, "its name is not UTF-8")
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                kind = path.suffix.lower() or "no suffix"
                self.leave_out(path, f"not of an image format that can be read ({kind})")
            else:
                yield path, status.st_size, status.st_mtime_ns


def _entries(folder: SourcePath) -> list[SourcePath]:
    try:
        return [*sorted(folder.iterdir())]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}") from error


def _split_folders(root: SourcePath) -> dict[str, SourcePath]:
    """Returns the folders of the splits, empty if classes are directly in the root."""
    folders: dict[str, SourcePath] = {}
    for path in _entries(root):
        for split, names in SPLIT_NAMES.items():
            if path.name.lower() in names and path.is_dir():
                if split in folders:
                    raise DatasetError(f"{root} has two folders {split}: {folders[split]}, {path}")
                folders[split] = path
    if "train" not in folders:
        return {}
    if "test" not in folders and "validation" in folders:
        folders["test"] = folders.pop("validation")
    return folders


def _divided(by_class: _Found) -> dict[str, _Found]:
    """Chooses test images by their names, so that added images change no choice but the last."""
    splits: dict[str, _Found] = {"train": {}, "test": {}}
    for name, files in by_class.items():
        keys = [zlib.crc32(os.fsencode(f"{name}/{path.name}")) for path, *_ in files]
        test = {i for i, key in enumerate(keys) if key % TEST_ONE_IN == 0}
        if len(files) > 1 and not test:
            test = {keys.index(min(keys))}
        elif len(files) > 1 and len(test) == len(files):
            test.remove(keys.index(max(keys)))
        for i, file in enumerate(files):
            splits["test" if i in test else "train"].setdefault(name, []).append(file)
    return splits


def _too_few(root: SourcePath, classes: Sequence[str], left_out: Sequence[tuple[str, str]]) -> str:
    found = f"only {classes[0]} has images" if classes else "no folder has images"
    lines = [
        f"{root} must have a folder of images for each of two classes or more, or train/CLASS "
        f"and test/CLASS, but {found}"
    ]
    if len(classes) == 1 and sum(path.is_dir() for path in _entries(root / classes[0])) > 1:
        lines.append(f"are its classes in {root / classes[0]}?")
    lines.append(f"images end in {', '.join(IMAGE_SUFFIXES)}")
    return "; ".join(lines + summarize(left_out))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
