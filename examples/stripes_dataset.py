"""A data set of your own: images of stripes, whose direction is the class."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.config.registry import DATASETS

DIRECTIONS = ("horizontal", "vertical", "diagonal")


@DATASETS.register("stripes")
class Stripes(tfds.core.GeneratorBasedBuilder):
    """Gray stripes of 32x32 pixels, prepared when they are first used."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=DIRECTIONS),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples(96, 0), "test": self._generate_examples(24, 1)}

    def _generate_examples(self, number: int, seed: int):
        rng = np.random.default_rng(seed)
        rows, cols = np.mgrid[:32, :32]
        for i in range(number):
            name = DIRECTIONS[i % len(DIRECTIONS)]
            position = {"horizontal": rows, "vertical": cols, "diagonal": rows + cols}[name]
            waves = np.sin(position * rng.uniform(0.5, 1.5) + rng.uniform(0, 6))
            image = np.repeat((127 + 100 * waves).astype(np.uint8)[..., None], 3, axis=-1)
            yield i, {"image": image, "label": name}
