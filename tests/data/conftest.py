"""A small data set of real JPEG files, prepared by TFDS."""

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

NUM_TRAIN, NUM_TEST = 23, 7


class TinyJpegs(tfds.core.GeneratorBasedBuilder):
    """Images of which each has its number in its pixels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    builder = TinyJpegs(data_dir=path)
    config = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=config)
    return str(path)


@pytest.fixture
def dataset(data_dir):
    """Makes a section of config.dataset, completed."""

    def make(**options):
        return ml_collections.ConfigDict(
            {
                "name": "tiny_jpegs",
                "split": "train",
                "process": 'decode|resize(8)|value_range(-1, 1)|onehot(30)|keep("image", "labels")',
                "batch_size": 4,
                "shuffle_buffer": 0,
                "cache": None,
                "data_dir": data_dir,
                "manual_dir": None,
                "prefetch": "autotune",
                "prefetch_device": 2,
                **options,
            }
        )

    return make


def ids(batch):
    """Numbers of the images in a batch, by their labels."""
    return np.argmax(batch["labels"], axis=-1).tolist()
