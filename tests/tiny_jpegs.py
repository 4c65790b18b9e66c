"""A small data set of real JPEG files, prepared by TFDS."""

import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN, NUM_TEST = 23, 7


class TinyJpegs(tfds.core.GeneratorBasedBuilder):
    """Images of which each has its number in its pixels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=30),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(NUM_TRAIN),
            "test": self._generate_examples(NUM_TEST),
        }

    def _generate_examples(self, count):
        rng = np.random.default_rng(0)
        for i in range(count):
            height, width = rng.integers(20, 40, 2)
            image = np.full((height, width, 3), 8 * i, np.uint8)
            yield i, {"image": image, "label": i}
