"""Source files that are on a local disk, or anywhere that fsspec reaches: s3://, gs://, hf://.

`RemotePath` has the methods of `pathlib.Path` that readers of source files use. The files below a
remote directory are listed once, when it is opened, so that no later question costs a request.
"""

import functools
import hashlib
import io
import os
import pathlib
import posixpath
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import fsspec
from fsspec.registry import known_implementations

from vmoe_prc.data.errors import DatasetError

# What file systems call the version of a file, or the time of its last change.
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")


def is_remote(path: str) -> bool:
    """Whether a path is one of an object store, such as gs://."""
    return "://" in path


def source_path(directory: str | os.PathLike[str]) -> "SourcePath":
    """Returns the directory of source files, absolute; a remote one is listed.

    Raises:
      DatasetError: If a remote directory cannot be read or has no files.
    """
    text = os.fspath(directory)
    if not is_remote(text):
        return pathlib.Path(text).expanduser().absolute()
    return _listed(text)


def relative(path: "SourcePath", root: "SourcePath") -> str:
    """Returns the path from a directory to what is below it, with slashes."""
    if isinstance(path, RemotePath):
        return str(path)[len(str(root)) + 1 :]
    return path.relative_to(str(root)).as_posix()


def read_file(path: str) -> bytes:
    """Reads a whole file, local or remote.

    Raises:
      OSError: If a local file cannot be read.
      DatasetError: If a remote file cannot be read.
    """
    if not is_remote(path):
        return pathlib.Path(path).read_bytes()
    system, name = _file_system(path)
    try:
        return system.cat_file(name)
    except Exception as error:
        # Each service raises its own errors.
        raise _unreadable(path, error) from error


class Status(NamedTuple):
    """The fields of `os.stat_result` that are read here.

    Attributes:
      st_mode: Whether it is a file or a directory.
      st_size: Size in bytes.
      st_mtime_ns: A number that changes when the file does; no time.
    """

    st_mode: int
    st_size: int
    st_mtime_ns: int


class RemotePath:
    """A file or directory below a remote directory, with methods of `pathlib.Path`.

    Args:
      url: Its address, without a slash at the end.
      below: Contents of the directory by name; None for a file.
      info: fsspec's record of a file.
    """

    def __init__(
        self,
        url: str,
        below: "dict[str, RemotePath] | None" = None,
        info: dict[str, Any] | None = None,
    ):
        self._url, self._below, self._info = url, below, info

    def __str__(self) -> str:
        return self._url

    def __lt__(self, other: "RemotePath") -> bool:
        return self._url.split("/") < other._url.split("/")

    def __truediv__(self, path: str) -> "RemotePath":
        """Returns a path below or next to this one, which may be missing."""
        url = _joined(self._url, path)
        place: RemotePath | None = self
        if not url.startswith(f"{self._url}/"):
            return RemotePath(url)
        for name in url[len(self._url) + 1 :].split("/"):
            place = (place._below or {}).get(name) if place else None
        return place or RemotePath(url)

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return pathlib.PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The directory, without what is in it."""
        return RemotePath(self._url.rpartition("/")[0])

    def is_dir(self) -> bool:
        """Whether it is a directory that was listed."""
        return self._below is not None

    def is_file(self) -> bool:
        """Whether it is a file; one that was not listed is asked for."""
        if self._info is None and self._below is None:
            system, name = _file_system(self._url)
            return system.isfile(name)
        return self._info is not None

    def is_symlink(self) -> bool:
        """Always False."""
        return False

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yields what the directory holds."""
        return iter((self._below or {}).values())

    def rglob(self, pattern: str) -> "Iterator[RemotePath]":
        """Yields everything below the directory; the only pattern is '*'."""
        assert pattern == "*"
        for path in self.iterdir():
            yield path
            yield from path.rglob(pattern)

    def stat(self) -> Status:
        """Returns size and version of a file; zeros for a directory."""
        if self._info is None:
            return Status(stat.S_IFDIR, 0, 0)
        version = repr([self._info.get(key) for key in _VERSIONS])
        number = int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "little")
        return Status(stat.S_IFREG, int(self._info.get("size") or 0), number)

    def read_bytes(self) -> bytes:
        """Reads a file, see `read_file`."""
        return read_file(self._url)

    def open(self, mode: str = "r", **options: Any) -> Any:
        """Opens a file to be read, as bytes with 'rb' or as text with 'r'."""
        system, name = _file_system(self._url)
        try:
            file = system.open(name, "rb")
        except Exception as error:
            raise _unreadable(self._url, error) from error
        return file if "b" in mode else io.TextIOWrapper(file, **options)


SourcePath = pathlib.Path | RemotePath


def _listed(url: str) -> RemotePath:
    """Lists a directory, as a tree."""
    url = url.rstrip("/")
    system, directory = _file_system(url)
    try:
        found = system.find(directory, detail=True)
    except Exception as error:
        raise _unreadable(url, error) from error
    root = RemotePath(url, {})
    for path, info in sorted(cast("dict[str, dict[str, Any]]", found).items()):
        # Services write a file with a slash at the end, or one of no bytes, for a directory.
        if path == directory or path.endswith("/"):
            continue
        place = root
        *parents, name = path.removeprefix(directory).strip("/").split("/")
        for parent in parents:
            place = _children(place).setdefault(parent, RemotePath(f"{place}/{parent}", {}))
        _children(place).setdefault(name, RemotePath(f"{place}/{name}", None, info))
    if not _children(root):
        raise DatasetError(f"{url} has no files, or is no directory")
    return root


def _children(directory: RemotePath) -> dict[str, RemotePath]:
    if directory._below is None:
        raise DatasetError(f"{directory} is a file and a directory")
    return directory._below


@functools.lru_cache(maxsize=64)
def _file_system_of(protocol: str) -> Any:
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = str(known_implementations[protocol]["class"]).partition(".")[0]
        raise DatasetError(f"{protocol}:// needs another package: pip install {package}") from error
    except ValueError as error:
        raise DatasetError(f"{protocol}:// is not known to fsspec: {error}") from error


def _file_system(url: str) -> tuple[Any, str]:
    """Returns the file system of an address, and what it calls the place."""
    system = _file_system_of(url.partition("://")[0])
    return system, system._strip_protocol(url)


def _joined(url: str, path: str) -> str:
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(rest, path))}"


def _unreadable(url: str, error: Exception) -> DatasetError:
    return DatasetError(f"{url} cannot be read: {type(error).__name__}: {error}")
