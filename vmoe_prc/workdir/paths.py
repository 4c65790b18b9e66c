"""Paths as users write them."""

import os
import urllib.parse
import urllib.request

from etils import epath

_FILE = "file://"


def user_path(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a path with `~` expanded; a `file://` URL becomes a local path.

    Args:
      path: A local path, a `file://` URL, or one of an object store such as `gs://`.
    """
    text = os.fspath(path)
    if text.startswith(_FILE):
        text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
    return epath.Path(text).expanduser()


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Returns `user_path` as an absolute path, which does not depend on the current directory."""
    text = os.fspath(user_path(path))
    return text if "://" in text else os.path.abspath(text)
