"""Process-wide settings of TensorFlow, TFDS and OpenCV."""

import functools
from logging import LogRecord

import cv2
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging


@functools.cache
def setup_tensorflow() -> None:
    """Restricts the libraries that read data, once per process; see each line.

    Programs call it at their start, before TensorFlow is used. Opening a split calls it, too,
    so that a notebook need not.
    """
    # TensorFlow would reserve the memory of the GPU that JAX trains on.
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    # tf.data runs one image per thread: threads within an OpenCV call would only compete.
    cv2.setNumThreads(1)
    # TFDS would print one progress bar per shard, through our log lines, and warn at each opening
    # of a data set whose configuration is made here, such as a folder of images.
    tfds.disable_progress_bar()
    logging.get_absl_logger().addFilter(_is_no_noise)


def _is_no_noise(record: LogRecord) -> bool:
    return not str(record.msg).startswith(("Using custom data configuration", "Variant folder"))
