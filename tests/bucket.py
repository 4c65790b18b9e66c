"""A bucket in memory, for paths such as gs://bucket/name."""

import contextlib
from typing import ClassVar
from unittest import mock

import etils.epath.gpath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Stands for Google Cloud Storage; `store` has its files by name."""

    protocol = ("gs", "gcs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@contextlib.contextmanager
def bucket():
    """Lets etils read and write it; yields the files by name."""
    # Without TensorFlow, etils reads gs:// through fsspec.
    with (
        mock.patch.object(etils.epath.gpath, "_is_tf_installed", lambda: False),
        mock.patch.object(backend.fsspec_backend, "_get_filesystem", lambda _: Bucket()),
    ):
        Bucket.store.clear()
        yield Bucket.store
