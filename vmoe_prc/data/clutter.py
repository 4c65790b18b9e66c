"""Cluttered scenes: one labelled image anywhere on a canvas, and pieces of other images around it.

After cluttered, translated MNIST (Mnih et al. 2014, arXiv 1406.6247): most patches of a scene do
not show the object, so that what a patch shows depends on the place and not only on the image.
"""

import dataclasses
import os

import numpy as np

from vmoe_prc.arrays import Int, UInt8
from vmoe_prc.data.idx import read_labelled

# A piece is cut from within this margin of an image, where garments and digits are.
PIECE_MARGIN = 4


@dataclasses.dataclass(frozen=True)
class FashionScenes:
    """Scenes of a split of cluttered Fashion-MNIST.

    Attributes:
      garments: Split of Fashion-MNIST, and the part of it whose garments are shown.
      count: Number of scenes.
      seed: Seed of the scenes.
    """

    garments: tuple[str, slice]
    count: int
    seed: int


# Training and validation scenes show different garments.
FASHION_SCENES = {
    "train": FashionScenes(("train", slice(None, 55_000)), 60_000, seed=1),
    "validation": FashionScenes(("train", slice(55_000, None)), 5_000, seed=3),
    "test": FashionScenes(("test", slice(None)), 10_000, seed=2),
}


def garments(
    folder: str | os.PathLike[str], split: str
) -> tuple[UInt8[np.ndarray, "N H W"], Int[np.ndarray, " N"]]:
    """Reads the garments that the scenes of a split show, and their labels.

    Raises:
      DatasetError: If a file of Fashion-MNIST is missing or damaged.
    """
    source, part = FASHION_SCENES[split].garments
    images, labels = read_labelled(folder, source)
    return images[part], labels[part].astype(np.int32)


def fashion_scenes(
    folder: str | os.PathLike[str], split: str, canvas: int = 40
) -> tuple[UInt8[np.ndarray, "M canvas canvas"], Int[np.ndarray, " M"]]:
    """Draws the scenes of a split of cluttered Fashion-MNIST; always the same.

    Args:
      folder: Directory of the four files of Fashion-MNIST.
      split: `train`, `validation` or `test`.
      canvas: Side of a scene in pixels.

    Raises:
      DatasetError: If a file is missing or damaged.
    """
    options = FASHION_SCENES[split]
    return cluttered_scenes(*garments(folder, split), options.count, options.seed, canvas)


def cluttered_scenes(
    images: UInt8[np.ndarray, "N H W"],
    labels: Int[np.ndarray, " N"],
    count: int,
    seed: int,
    canvas: int = 40,
    pieces: int = 3,
    piece_size: int = 8,
) -> tuple[UInt8[np.ndarray, "M canvas canvas"], Int[np.ndarray, " M"]]:
    """Draws scenes with black background; where images overlap, the brighter pixel is kept.

    Args:
      images: (N, H, W) uint8, bright objects on black.
      labels: (N,) integers.
      count: M, number of scenes.
      seed: Seed of the scenes; the same seed gives the same scenes.
      canvas: Side of a scene in pixels, at least the side of an image.
      pieces: Number of pieces of other images in a scene.
      piece_size: Side of a piece in pixels.

    Returns:
      (M, canvas, canvas) uint8 scenes and (M,) labels of their whole images.

    Raises:
      ValueError: If an image does not fit on the canvas, or a piece into an image.
    """
    height, width = images.shape[1:]
    if canvas < max(height, width):
        raise ValueError(f"canvas = {canvas} is smaller than the images, {height}x{width}")
    if piece_size > min(height, width) - 2 * PIECE_MARGIN:
        raise ValueError(f"piece_size = {piece_size} does not fit into the images")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(images), size=count)
    sources = rng.integers(len(images), size=(count, pieces))
    from_rows = rng.integers(PIECE_MARGIN, height - piece_size - PIECE_MARGIN + 1, (count, pieces))
    from_cols = rng.integers(PIECE_MARGIN, width - piece_size - PIECE_MARGIN + 1, (count, pieces))
    to_rows, to_cols = rng.integers(canvas - piece_size + 1, size=(2, count, pieces))
    rows = rng.integers(canvas - height + 1, size=count)
    cols = rng.integers(canvas - width + 1, size=count)
    scenes = np.zeros((count, canvas, canvas), np.uint8)
    for i, scene in enumerate(scenes):
        for j in range(pieces):
            r, c = from_rows[i, j], from_cols[i, j]
            piece = images[sources[i, j], r : r + piece_size, c : c + piece_size]
            _paste(scene, piece, int(to_rows[i, j]), int(to_cols[i, j]))
        _paste(scene, images[chosen[i]], int(rows[i]), int(cols[i]))
    return scenes, labels[chosen]


def _paste(scene: np.ndarray, image: np.ndarray, row: int, col: int) -> None:
    part = scene[row : row + image.shape[0], col : col + image.shape[1]]
    np.maximum(part, image, out=part)
