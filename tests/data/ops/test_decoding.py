"""Formats, channels, orientations, and files that are no images."""

import struct
import sys

import cv2
import numpy as np
import PIL.ImageOps
import pytest
from PIL import Image
from tiny_images import encode, huge_png, pixels

from vmoe_prc.data.ops.decoding import MAX_PIXELS, decode_image
from vmoe_prc.data.ops.registry import BadExampleError

PIXELS = pixels(0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("bmp", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
        ("jpeg2000", {"irreversible": False}),
    ],
)
def test_lossless_formats(kind, options):
    np.testing.assert_array_equal(decode_image(encode(PIXELS, kind, **options)), PIXELS)


def test_channels():
    alpha = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    for kind in ("png", "tiff", "webp"):
        options = {"lossless": True, "exact": True} if kind == "webp" else {}
        np.testing.assert_array_equal(decode_image(encode(alpha, kind, **options)), PIXELS)
    gray = PIXELS[..., 0]
    three = np.repeat(gray[..., None], 3, axis=-1)
    for kind in ("png", "tiff", "bmp"):
        np.testing.assert_array_equal(decode_image(encode(gray, kind)), three)
    deep = Image.fromarray(gray.astype(np.uint16) * 256 + 7)
    for kind in ("png", "tiff"):
        np.testing.assert_array_equal(decode_image(encode(deep, kind)), three)
    palette = Image.fromarray(PIXELS).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for kind in ("png", "gif", "tiff"):
        np.testing.assert_array_equal(decode_image(encode(palette, kind)), expected)


def test_heic_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(BadExampleError, match=r"pip install .vmoe_prc\[heif\]"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(12))


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    smooth = np.zeros((32, 48, 3), np.uint8)
    smooth[:16] = 200, 60, 20
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, expected in (({}, smooth), ({"exif": exif.tobytes()}, np.rot90(smooth, -1))):
        heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "x.heic", quality=100, **options)
        encoded = (tmp_path / "x.heic").read_bytes()
        decoded = decode_image(encoded)
        assert decoded.shape == expected.shape
        assert np.abs(decoded.astype(int) - expected).mean() < 4
        with pytest.raises(BadExampleError):
            decode_image(encoded[:40])


@pytest.mark.parametrize("orientation", range(10))
def test_orientation(orientation):
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = orientation
    encoded = encode(image, "jpeg", exif=exif)
    as_stored = decode_image(encoded)
    np.testing.assert_array_equal(decode_image(encode(image, "jpeg")), as_stored)
    picture = Image.fromarray(as_stored)
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(PIL.ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(decode_image(encoded, orient=True), expected)


def test_metadata_that_are_damaged_change_nothing():
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    encoded = bytearray(encode(image, "jpeg", exif=exif))
    begin = encoded.index(b"Exif") + 6
    encoded[begin : begin + 8] = b"\xff" * 8
    np.testing.assert_array_equal(
        decode_image(bytes(encoded), orient=True), decode_image(encode(image, "jpeg"))
    )


@pytest.mark.parametrize(
    "encoded",
    [
        huge_png(60_000, 60_000),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20),
        b"BM" + bytes(16) + struct.pack("<ii", 100_000, -100_000) + bytes(40),
    ],
    ids=["png", "gif", "bmp"],
)
def test_pictures_too_large_are_refused_by_their_headers(encoded):
    with pytest.raises(BadExampleError, match=f"pixels are more than {MAX_PIXELS:,}"):
        decode_image(encoded)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "tiff"])
def test_damaged_files_are_bad_examples_or_images(kind):
    """Cut, flipped and overwritten files: never another exception, nor a result of no shape."""
    rng = np.random.default_rng(1)
    whole = encode(pixels(1, 40, 50), kind)
    for i in range(60):
        damaged = bytearray(whole)
        where = int(rng.integers(len(whole)))
        if i % 3 == 0:
            damaged = damaged[:where]
        elif i % 3 == 1:
            damaged[where] ^= 1 << int(rng.integers(8))
        else:
            damaged[where : where + 16] = rng.bytes(16)
        try:
            image = decode_image(bytes(damaged), orient=True)
        except BadExampleError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
            assert image.size


def test_large_jpegs_are_decoded_at_a_part_of_their_size():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((801, 600), Image.Resampling.BICUBIC))
    encoded = encode(picture, "jpeg", quality=95)
    whole = decode_image(encoded)
    for min_side, shape in ((None, (600, 801)), (301, (600, 801)), (300, (300, 401))):
        pixels = decode_image(encoded, min_side=min_side)
        assert pixels.shape == (*shape, 3)
        resized = cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)
        # Of 255; two reductions of an odd width are not aligned to the same pixels.
        assert np.abs(pixels.astype(int) - resized).mean() < 2
    assert decode_image(encoded, min_side=75).shape == (75, 101, 3)
    assert decode_image(encode(picture, "png"), min_side=75).shape == picture.shape
