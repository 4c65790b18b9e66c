"""Copies of data sets with smaller images, which are faster to decode and to read.

    python -m vmoe_prc.data.prepare imagenet2012 --short_side=400 --quality=95

The copy is a data set `NAME_short400` of TFDS; `dataset.*.name` of a configuration names it. Images
whose shorter side is longer are resized (by areas, so that nothing aliases) and encoded as JPEG
without chroma subsampling, with their EXIF orientation, or as PNG if they are transparent: `decode`
treats the copy as it treats the original images. All others keep their bytes. Labels, texts and
numbers stay as they are; other entries, such as boxes, are left out.
"""

import concurrent.futures
import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, cast

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
import simplejpeg
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from vmoe_prc.data.builders import Builder
from vmoe_prc.data.examples import Parser, features_of
from vmoe_prc.data.files import FileRecords
from vmoe_prc.data.locks import file_lock
from vmoe_prc.data.ops.decoding import decode_image, decode_transparent, find_orientation
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.runtime.cores import num_cores

# Examples that are read, resized and written at a time.
CHUNK = 256
QUALITY = 95


def resized_name(builder: Builder, short_side: int, quality: int) -> str:
    """Returns the name of a copy; it is another one for each folder of images."""
    config = builder.builder_config.name if builder.builder_config else ""
    name = "_".join(filter(None, [builder.name, re.sub(r"\W", "_", config)]))
    return f"{name}_short{short_side}" + ("" if quality == QUALITY else f"_q{quality}")


def resize_dataset(builder: Builder, short_side: int, quality: int = QUALITY) -> Builder:
    """Writes a copy of a data set with smaller images, unless it is there.

    Args:
      builder: The prepared data set.
      short_side: Largest length of the shorter side of an image, in pixels.
      quality: Quality of JPEG, from 1 to 100.

    Returns:
      The copy.
    """
    name = resized_name(builder, short_side, quality)
    # The data set is in DATA_DIR/NAME/VERSION, or in DATA_DIR/NAME/CONFIG/VERSION.
    depth = 2 if builder.builder_config else 1
    data_dir = os.fspath(epath.Path(builder.data_path).parents[depth])
    with file_lock(epath.Path(data_dir) / f".{name}.lock"):
        try:
            return tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            logging.info("writing %s in %s", name, data_dir)
        with contextlib.redirect_stdout(io.StringIO()):
            tfds.dataset_builders.store_as_tfds_dataset(
                name=name,
                version=str(builder.version),
                features=_features(features_of(builder)),
                split_datasets={
                    split: _Resized(builder, split, short_side, quality)
                    for split in builder.info.splits
                },
                data_dir=data_dir,
                file_format=tfds.core.FileFormat.ARRAY_RECORD,
                disable_shuffling=True,
            )
        return tfds.builder(name, data_dir=data_dir)


def shrink(encoded: bytes, short_side: int, quality: int) -> bytes:
    """Returns an image whose shorter side is at most `short_side`.

    It is a JPEG, and keeps the orientation of EXIF; a transparent picture is a PNG.

    Args:
      encoded: The image; returned as it is if it is small enough, or cannot be decoded.
      short_side: Largest length of the shorter side.
      quality: Quality of JPEG.
    """
    try:
        transparent = decode_transparent(encoded)
        pixels = decode_image(encoded) if transparent is None else np.asarray(transparent)
    except BadExampleError:
        return encoded
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return encoded
    size = max(1, round(width * scale)), max(1, round(height * scale))
    exif = PIL.Image.Exif()
    if (orientation := find_orientation(encoded)) != 1:
        exif[PIL.ExifTags.Base.Orientation] = orientation
    if transparent is not None:
        # Pillow weights colours by their opacity.
        small = transparent.resize(size, PIL.Image.Resampling.BOX)
        file = io.BytesIO()
        small.save(file, "png", exif=exif)
        return file.getvalue()
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality, "RGB", "444")
    return _with_exif(jpeg, exif.tobytes()) if exif else jpeg


def _with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """Puts EXIF data into the segment APP1, behind the start of a JPEG."""
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


class _Resized:
    """(key, example) of a split, with smaller images; decoding and encoding run on all cores."""

    def __init__(self, builder: Builder, split: str, short_side: int, quality: int):
        self._builder, self._split = builder, split
        self._short_side, self._quality = short_side, quality

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        info = self._builder.info.splits[self._split]
        records = FileRecords(info, f"{self._builder.name} ({self._split})")
        features = features_of(self._builder)
        parse, kept = Parser(features), _features(features)
        images = [key for key, x in kept.items() if isinstance(x, tfds.features.Image)]

        def example(record: bytes) -> dict[str, Any] | None:
            try:
                parsed = parse(record)
            except BadExampleError:
                return None
            small = {key: shrink(parsed[key], self._short_side, self._quality) for key in images}
            return {key: parsed[key] for key in kept} | small

        lost = 0
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as threads:
            for begin in range(0, info.num_examples, CHUNK):
                numbers = range(begin, min(begin + CHUNK, info.num_examples))
                for key, found in zip(
                    numbers, threads.map(example, records.read(numbers)), strict=True
                ):
                    lost += found is None
                    if found is not None:
                        yield key, found
        if lost:
            logging.warning("%s: %d damaged examples are left out", self._split, lost)


def _features(features: tfds.features.FeaturesDict) -> tfds.features.FeaturesDict:
    """Returns the images, classes, texts and numbers; boxes and masks would not fit any more."""
    same = (tfds.features.ClassLabel, tfds.features.Text, tfds.features.Scalar)
    kept = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            _, _, channels = cast("tuple[int | None, ...]", feature.shape)
            kept[key] = tfds.features.Image(shape=(None, None, channels))
        elif isinstance(feature, same):
            kept[key] = feature
    return tfds.features.FeaturesDict(kept)
