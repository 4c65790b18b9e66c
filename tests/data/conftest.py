"""Sections of config.dataset for the small data set of real JPEG files."""

import ml_collections
import pytest


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
                "shuffle_block": 1,
                "cache": None,
                "max_bad_examples": 3,
                "data_dir": data_dir,
                "manual_dir": None,
                "prefetch": "autotune",
                "workers": 0,
                "prefetch_device": 2,
                **options,
            }
        )

    return make
