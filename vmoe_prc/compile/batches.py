"""Shapes of the batches of a configuration, from its preprocessing alone."""

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.data.ops.registry import VALUE_RANGE
from vmoe_prc.data.preprocess import Preprocess
from vmoe_prc.data.source import Examples

# Stands for a split that is not there: labelled images, as most data sets for classification.
_FEATURES = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=1)}


def train_batch_spec(config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the global batches of training; the data need not exist.

    Args:
      config: `config.dataset.train`, completed.

    Raises:
      ConfigError: If the preprocessing asks for more than an image and a label.
    """
    split = Examples(tfds.features.FeaturesDict(_FEATURES), None, 0)
    examples = Preprocess(config, split, 0, "config.dataset.train").spec
    spec = {
        key: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for key, x in examples.items()
    }
    if spec.pop(VALUE_RANGE, None):
        spec["image"] = jax.ShapeDtypeStruct(spec["image"].shape, np.float32)
    return spec
