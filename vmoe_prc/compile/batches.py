"""Shapes of the batches of a configuration, from only its preprocessing."""

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from vmoe_prc.config import ConfigError
from vmoe_prc.data.examples import Parser
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.image_ops import ValueRange
from vmoe_prc.data.preprocess import find_spec
from vmoe_prc.data.setup import setup_tensorflow

# Stands for a split that is not there: labelled images, as most data sets for classification.
_FEATURES = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=1)}
_FIELD = "config.dataset.train.process"


def train_batch_spec(config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the global batches of training; the data need not exist.

    Args:
      config: `config.dataset.train`, completed.

    Raises:
      ConfigError: If the preprocessing asks for more than an image and a label.
    """
    setup_tensorflow()
    ops = tuple(registry.build(config.process, _FIELD))
    try:
        examples = find_spec(ops, Parser(tfds.features.FeaturesDict(_FEATURES)))
    except registry.PreprocessError as error:
        raise ConfigError(_FIELD, config.process, " ".join(str(error).split())) from error
    spec = {
        key: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for key, x in examples.items()
    }
    if any(isinstance(op, ValueRange) for op in ops):
        spec["image"] = jax.ShapeDtypeStruct(spec["image"].shape, np.float32)
    return spec
