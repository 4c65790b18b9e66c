"""Decodes images to the same pixels as TensorFlow's decoder.

JPEGs go directly to libjpeg-turbo, with the options that TensorFlow gives it. TensorFlow decodes,
or refuses, every other format, and JPEGs in which libjpeg-turbo finds a fault. Formats that only
Pillow knows (AVIF, JPEG 2000, TIFF, and WebP variants) go to Pillow, and HEIC to pillow-heif, an
extra, which turns photos upright.

Channels: gray becomes three equal ones; CMYK and palettes become RGB; of 16 bits the upper 8 are
kept; of an animation the first picture is decoded. Alpha is dropped, as TensorFlow does, so that
colours of transparent pixels show; or pictures are laid on a background.
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
import PIL.Image
import simplejpeg
import tensorflow as tf
from jaxtyping import UInt8

from vmoe_prc.data.ops.registry import BadExampleError

_Read = TypeVar("_Read")

# 805 MB of RGB. A larger picture is refused before memory is taken for it.
MAX_PIXELS = 2**28

_JPEG = b"\xff\xd8\xff"
# CMYK is TensorFlow's: its conversion to RGB differs from libjpeg's.
_COLORSPACES = ("YCbCr", "Gray", "RGB")
# Of Pillow's formats some run other programs, or are no pictures.
_PILLOW_FORMATS = ("AVIF", "JPEG2000", "TIFF", "WEBP")
# Brands of HEIC at its start, after "ftyp".
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Bytes in which the metadata of a JPEG begin.
_EXIF_WITHIN = 1 << 16
# Formats with an orientation, and what is in files of PNG, WebP and AVIF that have one. Pillow
# turns TIFF upright itself.
_EXIF_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"EXIF", b"irot", b"imir")
_ALPHA_FORMATS = ("PNG", "GIF", "WEBP", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112
# Positions in TensorFlow's source that its messages name.
_PLACE = re.compile(r"\{\{.*?\}\}|\[Op:.*")


def decode_image(
    encoded: bytes,
    orient: bool = False,
    background: int | None = None,
    min_side: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image; see the module for formats and channels.

    Args:
      encoded: The bytes of the file.
      orient: Whether to turn images upright by the orientation in their EXIF data, which
        cameras and phones write. TIFF and HEIC are upright in any case.
      background: Gray, from 0 to 255, on which transparent pictures are laid; None drops alpha.
      min_side: JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, by a smaller inverse DCT, if
        their shorter side then still has this many pixels; None decodes all pixels.

    Raises:
      BadExampleError: If it cannot be decoded or is too large.
    """
    if _is_heif(encoded):
        return _decode_heif(encoded, background)
    if encoded.startswith(_JPEG):
        pixels = _decode_jpeg(encoded, min_side)
    else:
        _check_size(*_find_size(encoded))
        picture = None if background is None else decode_transparent(encoded)
        pixels = _decode_other(encoded) if picture is None else _on_gray(picture, background or 0)
    return _upright(pixels, find_orientation(encoded)) if orient else pixels


def check_num_pixels(encoded: bytes, most: int) -> None:
    """Reads the header of an image of any format.

    Args:
      encoded: The file.
      most: Pixels that it may have.

    Raises:
      BadExampleError: If it has more, or is no image.
    """
    if _is_heif(encoded):
        width, height = _read_heif(encoded, lambda image: image.size)
    else:
        try:
            with _quiet(), PIL.Image.open(io.BytesIO(encoded)) as image:
                width, height = image.size
        except PIL.Image.DecompressionBombError:
            raise BadExampleError(f"more than {most:,} pixels") from None
        except Exception:
            # Pillow raises anything for damaged files.
            raise BadExampleError("no image of a known format") from None
    _check_size(height, width, most)


def find_orientation(encoded: bytes) -> int:
    """Returns the orientation of EXIF, from 1 to 8, which `decode_image` can undo.

    It is 1, upright, if it is missing or damaged, and of formats that are decoded upright.
    """
    if encoded.startswith(_JPEG):
        has_exif = b"Exif\0" in encoded[:_EXIF_WITHIN]
    else:
        has_exif = any(mark in encoded for mark in _EXIF_MARKS)
    return _read_orientation(encoded) if has_exif and not _is_heif(encoded) else 1


def decode_transparent(encoded: bytes) -> PIL.Image.Image | None:
    """Decodes a transparent picture, as RGBA; None for others, and for what cannot be read.

    Raises:
      BadExampleError: If it is too large.
    """
    try:
        if _is_heif(encoded):
            image = _open_heif(encoded)
            return image.convert("RGBA") if image.has_transparency_data else None
        with (
            _quiet(),
            PIL.Image.open(io.BytesIO(encoded), formats=_ALPHA_FORMATS) as image,
        ):
            _check_size(image.height, image.width)
            if not image.has_transparency_data or image.mode[0] in "IF":
                return None
            return image.convert("RGBA")
    except BadExampleError:
        raise
    except Exception:
        # The decoder of other pictures raises the error.
        return None


def _is_heif(encoded: bytes) -> bool:
    return encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS


def _decode_jpeg(encoded: bytes, min_side: int | None) -> UInt8[np.ndarray, "H W 3"]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return _decode_other(encoded)
    _check_size(int(height), int(width))
    if colorspace in _COLORSPACES:
        min_height, min_width = _scaled_size(int(height), int(width), min_side)
        try:
            return simplejpeg.decode_jpeg(
                encoded,
                "RGB",
                fastdct=True,
                fastupsample=False,
                min_height=min_height,
                min_width=min_width,
            )
        except ValueError:
            # TensorFlow still decodes slightly damaged files.
            pass
    return _decode_other(encoded)


def _scaled_size(height: int, width: int, min_side: int | None) -> tuple[int, int]:
    """Returns the height and width at which a JPEG is decoded."""
    fitting = [n for n in (8, 4, 2) if min_side and min(height, width) >= n * min_side]
    factor = fitting[0] if fitting else 1
    return -(-height // factor), -(-width // factor)


def _decode_other(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    try:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        reason = " ".join(_PLACE.sub("", error.message).split())
        return _decode_by_pillow(encoded, reason)
    if not image.size:
        raise BadExampleError("the picture has no pixels")
    return image


def _decode_by_pillow(encoded: bytes, reason: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes what TensorFlow refused, for a reason that is given if Pillow refuses it, too."""
    try:
        with _quiet(), PIL.Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            _check_size(image.height, image.width)
            if image.mode.startswith("I;16"):
                gray = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            if image.mode in ("I", "F"):
                raise BadExampleError("pixels of 32 bits")
            return np.array(image.convert("RGB"))
    except BadExampleError:
        raise
    except PIL.UnidentifiedImageError:
        raise BadExampleError(reason) from None
    except Exception as error:
        # Pillow raises anything for damaged files: OSError, ValueError, struct.error, TypeError.
        raise BadExampleError(" ".join(str(error).split()) or type(error).__name__) from None


def _on_gray(image: PIL.Image.Image, background: int) -> UInt8[np.ndarray, "H W 3"]:
    canvas = PIL.Image.new("RGBA", image.size, (background, background, background, 255))
    canvas.alpha_composite(image)
    return np.array(canvas.convert("RGB"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings of Pillow, which name no file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_heif(encoded: bytes, background: int | None) -> UInt8[np.ndarray, "H W 3"]:
    picture = _open_heif(encoded)
    if background is not None and picture.has_transparency_data:
        return _on_gray(picture.convert("RGBA"), background)
    return np.array(picture.convert("RGB"))


def _open_heif(encoded: bytes) -> PIL.Image.Image:
    return _read_heif(encoded, lambda image: image.to_pillow())


def _read_heif(encoded: bytes, read: Callable[[Any], _Read]) -> _Read:
    """Opens a HEIC image of at most MAX_PIXELS, of which no pixel is decoded yet; reads it."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports] -- optional
    except ModuleNotFoundError:
        raise BadExampleError('HEIC needs pip install "vmoe_prc[heif]"') from None
    try:
        image = pillow_heif.open_heif(encoded, convert_hdr_to_8bit=True)
        _check_size(image.size[1], image.size[0])
        return read(image)
    except BadExampleError:
        raise
    except Exception as error:
        # Pillow-heif raises anything for damaged files, as Pillow does.
        raise BadExampleError(" ".join(str(error).split()) or type(error).__name__) from None


def _check_size(height: int, width: int, most: int = MAX_PIXELS) -> None:
    if height * width > most:
        raise BadExampleError(f"{height:,}x{width:,} pixels are more than {most:,}")


def _find_size(encoded: bytes) -> tuple[int, int]:
    """Reads height and width from the header of a PNG, GIF or BMP; (0, 0) of other files."""
    try:
        if encoded.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", encoded, 16)
        elif encoded.startswith(b"GIF8"):
            width, height = struct.unpack_from("<HH", encoded, 6)
        elif encoded.startswith(b"BM"):
            width, height = map(abs, struct.unpack_from("<ii", encoded, 18))
        else:
            return 0, 0
    except struct.error:
        return 0, 0
    return height, width


def _read_orientation(encoded: bytes) -> int:
    try:
        with _quiet(), PIL.Image.open(io.BytesIO(encoded), formats=_EXIF_FORMATS) as image:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Metadata that Pillow cannot parse are no reason to refuse the pixels.
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "h w 3"]:
    """Undoes how a camera was held: orientations 2 to 8 of EXIF 2.3, tag 0x0112."""
    if orientation >= 5:
        # 5: transposed. 6, 7, 8: transposed, then mirrored as 2, 3, 4 are.
        pixels = cv2.transpose(pixels)
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    flips = {2: 1, 3: -1, 4: 0}
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels
