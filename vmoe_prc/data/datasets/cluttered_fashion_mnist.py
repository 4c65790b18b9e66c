"""TFDS builder of cluttered, translated Fashion-MNIST, on which the place of a patch matters."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data.clutter import FASHION_SCENES, fashion_scenes
from vmoe_prc.data.errors import DatasetError

CANVAS = 40
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@DATASETS.register("cluttered_fashion_mnist")
class ClutteredFashionMnist(tfds.core.GeneratorBasedBuilder):
    """Scenes of 40x40 pixels: one garment of Fashion-MNIST anywhere, and 3 pieces of others.

    60,000 training scenes of the first 55,000 training garments, 5,000 validation scenes of the
    last 5,000, and 10,000 test scenes of the test garments; `data.clutter` draws them, with a
    fixed seed for each split. The class is the class of the whole garment.

    Args:
      manual_dir: Directory of the four files of Fashion-MNIST; only needed to prepare.
      data_dir: Where the prepared records go.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Seeds 1, 3 and 2 for training, validation and test."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The four files of Fashion-MNIST (train-images-idx3-ubyte.gz and so on): `apt-get install "
        "dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist, and "
        "https://github.com/zalandoresearch/fashion-mnist has them."
    )

    def __init__(self, manual_dir: str | None = None, data_dir: str | None = None):
        self._manual_dir = manual_dir
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(CANVAS, CANVAS, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        if self._manual_dir is None:
            raise DatasetError(f"is needed: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return {
            split: self._generate_examples(*fashion_scenes(self._manual_dir, split, CANVAS))
            for split in FASHION_SCENES
        }

    def _generate_examples(
        self, scenes: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
            yield i, {"image": scene[..., None], "label": int(label)}
