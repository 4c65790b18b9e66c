"""Lists of image files with little memory: ImageNet-21k has 14 million."""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets.core.hashing import Hasher

from vmoe_prc.data.errors import DatasetError

_LOW = (1 << 64) - 1
_WHOLE = -1


class Item(NamedTuple):
    """An image that is to be prepared.

    Attributes:
      name: Its name, unique in its split.
      label: Its class.
      path: The file that it is in.
      size: Its bytes.
      offset: Where it begins in the file; None if it is the whole file.
    """

    name: str
    label: int
    path: str
    size: int
    offset: int | None = None


class ImageList:
    """Images in the order in which TFDS writes them, by the hashes of their names.

    Columns of numbers hold them, in 70 bytes per image (104 while they are sorted) where many are
    in one file; a list of `Item` took 410. Parts share the columns. Pickled it is a list of `Item`.

    Args:
      split: Name of the split, the salt of the hashes.
      items: The images.

    Raises:
      DatasetError: If two have the same name.
    """

    def __init__(self, split: str, items: Iterable[Item]):
        hasher = Hasher(split)
        names, paths = bytearray(), dict[str, int]()
        ends, labels, files = array("q", [0]), array("q"), array("q")
        sizes, offsets, high, low = array("q"), array("q"), array("Q"), array("Q")
        for item in items:
            names += item.name.encode("utf-8", "surrogateescape")
            ends.append(len(names))
            labels.append(item.label)
            files.append(paths.setdefault(item.path, len(paths)))
            sizes.append(item.size)
            offsets.append(_WHOLE if item.offset is None else item.offset)
            hashed = hasher.hash_key(item.name)
            high.append(hashed >> 64)
            low.append(hashed & _LOW)
        self._names, self._paths = names, list(paths)
        self._ends, self._labels, self._files = ends, labels, files
        self._offsets, self._sizes = offsets, np.asarray(sizes)
        hashes = np.asarray(high), np.asarray(low)
        self._order = np.lexsort(hashes[::-1])
        self._check_different(*hashes)

    def _check_different(self, high: np.ndarray, low: np.ndarray) -> None:
        first, second = self._order[:-1], self._order[1:]
        equal = np.flatnonzero((high[first] == high[second]) & (low[first] == low[second]))
        if equal.size:
            item = self._item(int(first[equal[0]]))
            raise DatasetError(f"{item.path} has an image {item.name!r}, and so has another file")

    def _item(self, index: int) -> Item:
        name = self._names[self._ends[index] : self._ends[index + 1]]
        offset = self._offsets[index]
        return Item(
            name.decode("utf-8", "surrogateescape"),
            self._labels[index],
            self._paths[self._files[index]],
            int(self._sizes[index]),
            None if offset == _WHOLE else offset,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the images."""
        return int(self._sizes[self._order].sum())

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, map(int, self._order))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def parts(self, count: int) -> "list[ImageList]":
        """Cuts the list into parts of about the same number of images."""
        bounds = [i * len(self) // count for i in range(count + 1)]
        return [self._part(slice(*pair)) for pair in itertools.pairwise(bounds)]

    def _part(self, places: slice) -> "ImageList":
        part = object.__new__(ImageList)
        part.__dict__.update(self.__dict__)
        part._order = self._order[places]
        return part
