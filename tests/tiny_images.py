"""Encoded images of a few pixels."""

import io

import numpy as np
from PIL import Image


def pixels(seed, height=12, width=16):
    """Random pixels, (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode(image, kind, **options):
    """Encodes an array or a picture of Pillow."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(seed, **size):
    """A PNG of random pixels."""
    return encode(pixels(seed, **size), "png")
