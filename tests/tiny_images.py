"""Encoded images of a few pixels."""

import io
import struct
import zlib

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


def huge_png(width=60_000, height=60_000):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
