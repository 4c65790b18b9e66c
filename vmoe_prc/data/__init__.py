"""The TensorFlow side: from TFDS data sets to batches of NumPy arrays."""

import tensorflow as tf

from vmoe_prc.data import image_ops, randaugment, two_views  # noqa: F401  They register ops.
from vmoe_prc.data.pipeline import batch_spec, eval_batches, train_batches, validate
from vmoe_prc.data.source import num_examples

__all__ = ["batch_spec", "eval_batches", "num_examples", "train_batches", "validate"]

# TensorFlow would take the memory of the GPU that JAX trains on.
tf.config.set_visible_devices([], "GPU")
