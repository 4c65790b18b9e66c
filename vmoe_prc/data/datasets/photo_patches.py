"""TFDS builder of patches of photographs: which of N photographs is this a patch of?"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import tensorflow_datasets as tfds
from absl import logging

from vmoe_prc.arrays import UInt8
from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.class_folders import IMAGE_SUFFIXES
from vmoe_prc.data.errors import DatasetError

# Photographs and micrographs of scikit-image's package, which no download is needed for.
OF_SCIKIT_IMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
PATCH = 64
# Larger photographs are made smaller, so that a patch shows more than a piece of sky.
SHORT_SIDE = 384
# Part of the width, from the left, that training patches come from; the rest is for the test.
TRAINING_PART = 0.7
PATCHES = {"train": 400, "test": 100}
SEEDS = {"train": 1, "test": 2}
# What Pillow raises for files that are damaged, or no images.
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)


@DATASETS.register("photo_patches")
class PhotoPatches(tfds.core.GeneratorBasedBuilder):
    """Patches of 64x64 pixels at random places of photographs; the class is the photograph.

    Photographs with a shorter side above 384 pixels are made smaller. 400 training patches lie in
    the left 70% of a photograph and 100 test patches in the right 30%: no pixel is in both. Places
    are drawn with fixed seeds, and gray photographs have three equal channels. Photographs whose
    test part is too narrow, and files that are no images, are left out with a warning; a damaged
    image is an error.

    Args:
      manual_dir: Directory of photographs, with subdirectories, in the order of their names; those
        of scikit-image's package if None. The data set is prepared again when a file changes.
      data_dir: Where the prepared records go.

    Raises:
      DatasetError: If there are fewer than two photographs.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Seeds 1 and 2 for training and test."}

    def __init__(self, manual_dir: str | None = None, data_dir: str | None = None):
        self._root, self._paths = _photographs(manual_dir)
        config = tfds.core.BuilderConfig(name=self._digest(times=manual_dir is not None))
        super().__init__(config=config, data_dir=data_dir)

    @property
    def content_digest(self) -> str:
        """Digest of names and sizes of the files; equal for a copy of the directory."""
        return self._digest(times=False)

    def _digest(self, times: bool) -> str:
        entries = [
            [self._name(path), path.stat().st_size, *([path.stat().st_mtime_ns] if times else [])]
            for path in self._paths
        ]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]

    def _name(self, path: pathlib.Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _info(self) -> tfds.core.DatasetInfo:
        # TFDS restores the names of a prepared data set from its files.
        prepared = (pathlib.Path(self.data_dir) / "dataset_info.json").exists()
        names = None if prepared else [self._name(path) for path in self._usable()]
        features = {
            "image": tfds.features.Image(shape=(PATCH, PATCH, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=names),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _usable(self, warn: bool = False) -> list[pathlib.Path]:
        usable = []
        for path in self._paths:
            if problem := find_problem(path):
                if warn:
                    logging.warning("left out: %s %s", path, problem)
            else:
                usable.append(path)
        if len(usable) < 2:
            raise DatasetError(f"{self._root} has fewer than two photographs that can be used")
        return usable

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        paths = self._usable(warn=True)
        return {split: self._generate_examples(paths, split) for split in PATCHES}

    def _generate_examples(
        self, paths: Sequence[pathlib.Path], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for label, path in enumerate(paths):
            patches = draw_patches(read_photograph(path), split, (SEEDS[split], label))
            for i, patch in enumerate(patches):
                yield f"{label:06d}_{i:06d}", {"image": patch, "label": label}


def draw_patches(
    photograph: UInt8[np.ndarray, "H W 3"], split: str, seed: Sequence[int]
) -> UInt8[np.ndarray, "M 64 64 3"]:
    """Cuts the patches of a split out of a photograph.

    Args:
      photograph: (H, W, 3) uint8.
      split: `train` or `test`.
      seed: Seed of the places.
    """
    height, width, _ = photograph.shape
    border = _border(width)
    first, end = (0, border) if split == "train" else (border, width)
    rng = np.random.default_rng(seed)
    rows = rng.integers(height - PATCH + 1, size=PATCHES[split])
    cols = rng.integers(first, end - PATCH + 1, size=PATCHES[split])
    places = zip(rows, cols, strict=True)
    return np.stack([photograph[r : r + PATCH, c : c + PATCH] for r, c in places])


def find_problem(path: pathlib.Path) -> str | None:
    """Returns why a file cannot be used, from its header; None if it can."""
    try:
        with PIL.Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(PIL.ExifTags.Base.Orientation, 1) > 4
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    width, height = _scaled(height, width) if turned else _scaled(width, height)
    if height < PATCH or width - _border(width) < PATCH:
        columns = width - _border(width)
        return f"is too small: {width}x{height} pixels, the test part {columns} columns wide"
    return None


def read_photograph(path: pathlib.Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a photograph as it was held, made smaller to a shorter side of 384 pixels.

    Raises:
      DatasetError: If it cannot be read.
    """
    try:
        with PIL.Image.open(path) as file:
            image = PIL.ImageOps.exif_transpose(file).convert("RGB")
    except UNREADABLE as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    size = _scaled(image.width, image.height)
    if size != image.size:
        image = image.resize(size, PIL.Image.Resampling.LANCZOS)
    return np.asarray(image)


def _scaled(width: int, height: int) -> tuple[int, int]:
    scale = min(1, SHORT_SIDE / min(width, height))
    return round(width * scale), round(height * scale)


def _border(width: int) -> int:
    """Returns the first column of the test part."""
    return round(TRAINING_PART * width)


def _photographs(manual_dir: str | None) -> tuple[pathlib.Path, list[pathlib.Path]]:
    if manual_dir is None:
        try:
            import skimage
        except ImportError:
            raise DatasetError(
                "has no photographs: give a directory of them, or `pip install scikit-image`"
            ) from None
        root = pathlib.Path(skimage.__file__).parent / "data"
        return root, [root / name for name in OF_SCIKIT_IMAGE if (root / name).is_file()]
    root = pathlib.Path(manual_dir).expanduser().absolute()
    if not root.is_dir():
        raise DatasetError(f"{root} is not a directory")
    found = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    return root, [path for path in found if path.is_file()]
