"""The records of a split in its files, each to be read at any time."""

import abc
import collections
import itertools
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.core.splits import SubSplitInfo

from vmoe_prc.data.tfrecord_index import indexed
from vmoe_prc.data.tfrecords import read_records
from vmoe_prc.errors import RunError

# A whole split, or a part of one such as train[:99%].
SplitInfo = tfds.core.SplitInfo | SubSplitInfo

# Fraction of the open-file limit that readers of ArrayRecord may use.
_SHARE_OF_DESCRIPTORS = 8
# Adjacent records of one request: some megabytes of images.
_MOST_AT_ONCE = 64


class Records(abc.ABC):
    """The serialised examples of a split, by their number from 0."""

    @abc.abstractmethod
    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Reads records; a damaged one is empty.

        Raises:
          RunError: If a file cannot be read at all.
        """

    @abc.abstractmethod
    def place(self, number: int) -> str:
        """Says in which file a record is, and where in it."""


class FileRecords(Records):
    """Records that are read from the files of a split when they are needed.

    Args:
      info: TFDS's record of the split.
      name: Name of the split, for errors.
    """

    def __init__(self, info: SplitInfo, name: str):
        parts = info.file_instructions
        self._name = name
        self._paths = [os.fspath(part.filename) for part in parts]
        self._skip = np.asarray([part.skip for part in parts], np.int64)
        takes = np.asarray([part.take for part in parts], np.int64)
        self._first = np.cumsum(takes) - takes
        sizes = [part.examples_in_shard for part in parts]
        kind = _ArrayRecords if _is_array_record(self._paths[0]) else _TFRecords
        self._files: _Files = kind(self._paths, sizes)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Reads records; a damaged one is empty."""
        try:
            return self._files.read([self._find(number) for number in numbers])
        except (OSError, tf.errors.OpError) as error:
            raise unreadable(self._name, error) from error

    def place(self, number: int) -> str:
        """Says in which file a record is, and where in it."""
        file, index = self._find(number)
        return f"record {index} of {self._paths[file]}"

    def _find(self, number: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._first, number, "right")) - 1
        return file, int(number - self._first[file] + self._skip[file])


class MemoryRecords(Records):
    """Records of a small split, read once and kept in memory."""

    def __init__(self, records: FileRecords, num_examples: int):
        self._places = records
        self._records = records.read(range(num_examples))

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Returns records; a damaged one is empty."""
        return [self._records[number] for number in numbers]

    def place(self, number: int) -> str:
        """Says in which file a record is, and where in it."""
        return self._places.place(number)


def unreadable(name: str, error: Exception) -> RunError:
    """Makes one line of the system's or TensorFlow's error about files that cannot be read."""
    cause = getattr(error, "message", error)  # TensorFlow's errors give more in `str`
    return RunError(f"{name} cannot be read: {cause}")


class _Files(abc.ABC):
    @abc.abstractmethod
    def read(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Reads the records at (file, index) in it; a damaged one is empty."""


class _ArrayRecords(_Files):
    """ArrayRecord files, which have an index; few readers stay open at a time."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[int]):
        self._paths, self._sizes = paths, sizes
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self._read(*place) for place in places]

    def _read(self, file: int, index: int) -> bytes:
        try:
            [record] = self._reader(file).read([index])
        except RuntimeError:
            # The checksum of its chunk, which holds this record only, does not fit.
            return b""
        return record

    def _reader(self, file: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(file, None)
            if reader is None:
                # No read-ahead and no threads: records are read singly, and in any order.
                reader = ArrayRecordReader(
                    self._paths[file], "readahead_buffer_size:0,max_parallelism:0"
                )
                # It does not raise for a file that is missing or torn.
                if reader.num_records() != self._sizes[file]:
                    raise OSError(
                        f"{self._paths[file]} has {reader.num_records():,} records, "
                        f"not {self._sizes[file]:,}: it is missing or damaged"
                    )
            self._readers[file] = reader
            # Threads that still use a reader keep it alive.
            while len(self._readers) > max(4, _open_file_limit() // _SHARE_OF_DESCRIPTORS):
                self._readers.popitem(last=False)
            return reader


class _TFRecords(_Files):
    """TFRecord files, whose records are found at the first read, for all files at once."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[int]):
        self._paths, self._sizes = paths, sizes
        self._offsets: list[np.ndarray] | None = None
        self._lock = threading.Lock()

    def read(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._offsets is None:
            with self._lock:
                self._offsets = self._offsets or indexed(self._paths, self._sizes)
        records: dict[tuple[int, int], bytes] = {}
        for file, begin, end in _runs(sorted(set(places))):
            offsets = self._offsets[file][begin : end + 1].tolist()
            # Those behind a record whose length is damaged are not found.
            found = read_records(self._paths[file], offsets) if len(offsets) > 1 else []
            records |= {(file, begin + i): record for i, record in enumerate(found)}
        return [records.get(place, b"") for place in places]


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields (file, begin, end) of adjacent records, at most `_MOST_AT_ONCE`, of sorted places."""
    for _, run in itertools.groupby(enumerate(places), lambda x: (x[1][0], x[1][1] - x[0])):
        adjacent = [place for _, place in run]
        file, stop = adjacent[0][0], adjacent[-1][1] + 1
        for begin in range(adjacent[0][1], stop, _MOST_AT_ONCE):
            yield file, begin, min(begin + _MOST_AT_ONCE, stop)


def _is_array_record(path: str) -> bool:
    return "array_record" in pathlib.PurePath(path).name


def _open_file_limit() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 512
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
