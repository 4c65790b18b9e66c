"""Reads the four files of MNIST and of data sets of its form, such as Fashion-MNIST."""

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from vmoe_prc.arrays import UInt8
from vmoe_prc.data.errors import DatasetError

# By split, of images and labels.
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
UINT8 = 8


def read_labelled(
    folder: str | os.PathLike[str], split: str
) -> tuple[UInt8[np.ndarray, "N H W"], UInt8[np.ndarray, " N"]]:
    """Reads the images and labels of a split, `train` or `test`.

    Raises:
      DatasetError: If a file is missing, damaged, or of another form.
    """
    paths = [pathlib.Path(folder) / name for name in FILES[split]]
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"{paths[0]} and {paths[1]} are of shapes {images.shape} and {labels.shape}, not "
            "(N, height, width) and (N,)"
        )
    return images, labels


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
    """Reads a compressed file of unsigned bytes.

    Raises:
      DatasetError: If it is missing, damaged, or of another form.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    # Two zeros, the type and the number of dimensions, and then each size as 4 bytes.
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UINT8:
        raise DatasetError(f"{path} is not an IDX file of bytes")
    start = 4 + 4 * data[3]
    shape = [int(n) for n in np.frombuffer(data[4:start], ">u4")]
    if len(data) != start + math.prod(shape):
        raise DatasetError(f"{path} has {len(data):,} bytes; its shape {shape} has another number")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
