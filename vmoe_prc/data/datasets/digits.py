"""TFDS builder of scikit-learn's handwritten digits: real images that need no download."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.config.registry import DATASETS

TEST_EVERY = 5


@DATASETS.register("digits")
class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8x8 pixels, the test part of UCI's optical digits (E. Alpaydin)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Every fifth image is a test image."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            # In the order of the list: the split into parts does not depend on a hash.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
        test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
        return {
            "train": self._generate_examples(images[~test], labels[~test]),
            "test": self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
