"""TFDS builder of NumPy arrays of images and labels."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import PIL.Image

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.datasets.image_files import ImageFiles, Labelled, classes_of, to_label
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.remote import SourcePath

IMAGE_KEYS = ("images", "image", "x", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "arr_1")


@DATASETS.register("arrays")
class Arrays(ImageFiles):
    """Files *.npz with `images` (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8 and `labels` (N,)."""

    RELEASE_NOTES: ClassVar = {"1.0.0": "Archives of NumPy."}
    SUFFIXES = (".npz",)

    def read(self, path: SourcePath) -> Iterator[Labelled]:
        """Reads the images of a file; they are kept as PNG."""
        images, labels = _load(path, IMAGE_KEYS), _labels(path)
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DatasetError(f"{path}: images must be (N, H, W[, C]) uint8, not {images.dtype}")
        if images.ndim == 4 and images.shape[-1] not in (1, 3):
            raise DatasetError(f"{path}: images have {images.shape[-1]} channels, not 1 or 3")
        if len(images) != len(labels):
            raise DatasetError(f"{path} has {len(images):,} images and {len(labels):,} labels")
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            PIL.Image.fromarray(pixels).save(file, "png")
            yield Labelled(f"{i:08d}", file.getvalue(), label)

    def find_classes(self, files: Sequence[SourcePath]) -> list[str]:
        """Returns the names of the classes."""
        return classes_of(list({label for path in files for label in _labels(path)}))


def _labels(path: SourcePath) -> list[int | str]:
    labels = _load(path, LABEL_KEYS)
    if labels.ndim != 1:
        raise DatasetError(f"{path}: labels must be (N,), not of shape {labels.shape}")
    return [to_label(label, f"{path}, label {i}") for i, label in enumerate(labels.tolist())]


def _load(path: SourcePath, keys: Sequence[str]) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            key = next((key for key in keys if key in arrays), None)
            if key is None:
                raise DatasetError(
                    f"{path} has {', '.join(arrays) or 'nothing'}, and none of {', '.join(keys)}"
                )
            return arrays[key]
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
