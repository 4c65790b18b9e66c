"""Single records of a TFRecord file, also those behind a damaged one.

A record is its length (8 bytes), a checksum of the length (4), the data, and a checksum of
the data (4).
"""

import functools
import struct

import google_crc32c
import numpy as np
import tensorflow as tf

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEADER_SIZE = _LENGTH.size + _CHECKSUM.size


def read_record(path: str | bytes, index: int | np.integer) -> bytes:
    """Reads the record of a number, from 0; an empty string if it is damaged or missing.

    Raises:
      tf.errors.OpError: If the file cannot be read at all.
    """
    path = tf.compat.as_str(path)
    offsets = _offsets(path)
    if index >= len(offsets) - 1:
        return b""
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(int(offsets[index]) + _HEADER_SIZE)
        content = file.read(int(offsets[index + 1] - offsets[index]) - _HEADER_SIZE)
    data, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    return data if checksum == _masked_crc(data) else b""


def openable(path: str | bytes) -> str | bytes:
    """Returns the path of a file that can be read.

    Raises:
      tf.errors.OpError: If it cannot.
    """
    with tf.io.gfile.GFile(tf.compat.as_str(path), "rb") as file:
        file.read(1)
    return path


@functools.lru_cache(maxsize=8)
def _offsets(path: str) -> np.ndarray:
    """Returns where each record begins, and the last ends, as far as the lengths are good."""
    offsets = [0]
    with tf.io.gfile.GFile(path, "rb") as file:
        size = file.size()
        while offsets[-1] + _HEADER_SIZE <= size:
            file.seek(offsets[-1])
            header = file.read(_HEADER_SIZE)
            length = header[: _LENGTH.size]
            if header[_LENGTH.size :] != _masked_crc(length):
                break
            end = offsets[-1] + _HEADER_SIZE + _LENGTH.unpack(length)[0] + _CHECKSUM.size
            if end > size:
                break
            offsets.append(end)
    return np.asarray(offsets, np.int64)


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the format has it."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
