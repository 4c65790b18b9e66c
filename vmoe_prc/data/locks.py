"""Locks between processes that prepare the same files."""

import contextlib
from collections.abc import Iterator

import filelock
from absl import logging
from etils import epath

from vmoe_prc.data.remote import is_remote

_PATIENCE = 5.0


@contextlib.contextmanager
def file_lock(path: epath.Path) -> Iterator[None]:
    """Excludes other processes that use the same lock file; waits for them.

    The lock ends with the process that holds it, however that ends. On object stores there are no
    locks: the block runs at once.

    Args:
      path: The lock file; its directory is made if missing.

    Raises:
      OSError: If the file cannot be written.
    """
    if is_remote(str(path)):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except filelock.Timeout:
        logging.info("waiting for another process that prepares %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
