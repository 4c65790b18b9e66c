"""Files that are written whole or not at all."""

import contextlib
from collections.abc import Iterator
from os import PathLike

from etils import epath


@contextlib.contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[epath.Path]:
    """Gives a path to write to, which becomes `path` when the block ends without an error.

    Args:
      path: The file, local or `gs://`; its directory is made if missing.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, as it has no meaning to who lists the directory.
    temporary = path.parent / f".{path.name}.tmp"
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
