"""Pixels of encoded images, to the digit those of TensorFlow's decoder.

JPEGs go to libjpeg-turbo by the shortest way, with the options that TensorFlow gives it. What
that finds fault with, and every other format, is TensorFlow's own to decode or to refuse.
"""

import re

import numpy as np
import simplejpeg
import tensorflow as tf
from jaxtyping import UInt8

from vmoe_prc.data.ops.registry import BadExampleError

_JPEG = b"\xff\xd8\xff"
# Of four channels TensorFlow makes three in a way of its own.
_COLORSPACES = ("YCbCr", "Gray", "RGB")
# Where in TensorFlow an error was found.
_PLACE = re.compile(r"\{\{.*?\}\}|\[Op:.*")


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a JPEG, PNG, BMP or the first picture of a GIF; gray becomes three equal channels.

    Raises:
      BadExampleError: If it cannot be decoded.
    """
    if encoded.startswith(_JPEG):
        try:
            if simplejpeg.decode_jpeg_header(encoded)[2] in _COLORSPACES:
                return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, fastupsample=False)
        except ValueError:
            # TensorFlow decodes what is damaged a little.
            pass
    try:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        raise BadExampleError(" ".join(_PLACE.sub("", error.message).split())) from None
    return image.numpy()
