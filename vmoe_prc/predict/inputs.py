"""Image files named on the command line: files, folders, patterns, and lists on stdin."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from vmoe_prc.config import ConfigError
from vmoe_prc.data.class_folders import IMAGE_SUFFIXES


def find_images(arguments: Sequence[str], stdin: TextIO = sys.stdin) -> list[str]:
    """Lists the images that arguments name, each once, in the order of the arguments.

    Args:
      arguments: Paths of files, folders (searched with their subfolders, hidden ones left
        out) and patterns such as `photos/*.jpg`; `-` reads one path per line from `stdin`.
      stdin: Where to read for `-`.

    Raises:
      ConfigError: If an argument names nothing, or a folder without images.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        names = list(_expand(argument, stdin))
        if not names:
            expected = "expected an image, a folder with images, or a pattern that matches some"
            raise ConfigError("IMAGE", argument, expected)
        found |= dict.fromkeys(names)
    return list(found)


def _expand(argument: str, stdin: TextIO) -> Iterable[str]:
    if argument == "-":
        return [line.strip() for line in stdin if line.strip()]
    path = os.path.expanduser(argument)
    if os.path.isdir(path):
        return list(images_in_folder(path))
    if os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))


def images_in_folder(folder: str) -> Iterator[str]:
    """Yields the paths of the images in a folder and its subfolders, sorted."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield os.path.join(parent, name)
