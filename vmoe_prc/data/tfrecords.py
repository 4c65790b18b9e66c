"""Random access to the records of a TFRecord file.

A record is its length (8 bytes), a checksum of the length (4), the data, and a checksum of the
data (4). The file has no index, so where its records begin is found once, by going from length to
length, and kept in a file next to it.
"""

import itertools
import os
import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from vmoe_prc.data.remote import is_remote

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEADER_SIZE = _LENGTH.size + _CHECKSUM.size
MIN_RECORD_SIZE = _HEADER_SIZE + _CHECKSUM.size
# Bytes per read of a file on an object store, where a request takes longer than many bytes.
_REMOTE_BUFFER = 8 << 20
# A page: reading on from a header would read images, too.
_LOCAL_BUFFER = 4096


def read_range(path: str, begin: int, end: int) -> bytes:
    """Reads bytes begin to end - 1 of a file; fewer if it is shorter.

    Raises:
      OSError: If the file cannot be read.
      tf.errors.OpError: If it is on an object store, and cannot be read.
    """
    if is_remote(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, end - begin, begin)
    finally:
        os.close(descriptor)


def read_records(path: str, offsets: Sequence[int]) -> list[bytes]:
    """Reads adjacent records by one request; a damaged one is empty.

    Args:
      path: The file.
      offsets: Where each of the records begins, and where the last one ends.

    Raises:
      OSError, tf.errors.OpError: If the file cannot be read.
    """
    content = read_range(path, offsets[0], offsets[-1])
    bounds = [offset - offsets[0] for offset in offsets]
    return [_data(content[begin:end]) for begin, end in itertools.pairwise(bounds)]


def _data(record: bytes) -> bytes:
    data, checksum = record[_HEADER_SIZE : -_CHECKSUM.size], record[-_CHECKSUM.size :]
    return data if checksum == _masked_crc(data) else b""


def find_records(path: str) -> Int64[np.ndarray, " records_and_end"]:
    """Finds where each record of a file begins, and where the last one ends.

    Stops at the first record whose length is damaged: nothing after it can be found.

    Raises:
      OSError, tf.errors.OpError: If the file cannot be read.
    """
    size = tf.io.gfile.stat(path).length if is_remote(path) else os.stat(path).st_size
    buffer = _Buffer(path)
    offsets = [0]
    while offsets[-1] + _HEADER_SIZE <= size:
        header = buffer.read(offsets[-1], _HEADER_SIZE)
        length = header[: _LENGTH.size]
        if header[_LENGTH.size :] != _masked_crc(length):
            break
        end = offsets[-1] + _HEADER_SIZE + _LENGTH.unpack(length)[0] + _CHECKSUM.size
        if end > size:
            break
        offsets.append(end)
    return np.asarray(offsets, np.int64)


class _Buffer:
    """Short reads at growing positions of a file."""

    def __init__(self, path: str):
        self._path, self._size = path, _REMOTE_BUFFER if is_remote(path) else _LOCAL_BUFFER
        self._begin, self._content = 0, b""

    def read(self, begin: int, size: int) -> bytes:
        if not self._begin <= begin <= begin + size <= self._begin + len(self._content):
            self._begin = begin
            self._content = read_range(self._path, begin, begin + max(size, self._size))
        offset = begin - self._begin
        return self._content[offset : offset + size]


def _masked_crc(data: bytes) -> bytes:
    """Returns the checksum of the format: CRC-32C, rotated and shifted."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
