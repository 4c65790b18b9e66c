"""Figures and image files inside an HTML page, as data URIs."""

import base64
import dataclasses
import io
import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib
import PIL.Image
from matplotlib.figure import Figure

# Ink of drawings without a background, on a light and on a dark page.
_INKS = {"light": "#3a3f45", "dark": "#c9ced6"}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
# The same figure gives the same file.
_SVG = {"metadata": {"Date": None}, "format": "svg", "transparent": True}
_DPI = 144
MAX_PIXELS = 40_000_000
MAX_BYTES = 50_000_000


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a page with its texts.

    Attributes:
      source: Data URI.
      dark_source: Data URI for a dark page; None if it is the same.
      alt: Description for readers who cannot see it.
      caption: Text below it.
      width: Its width in CSS pixels where there is room.
      height: Its height.
    """

    source: str
    dark_source: str | None
    alt: str
    caption: str
    width: int
    height: int


def photograph(figure: Figure, alt: str, caption: str = "") -> Picture:
    """Embeds a figure that holds images, with its background."""
    file = io.BytesIO()
    figure.savefig(file, format="webp", dpi=_DPI, pil_kwargs={"lossless": True})
    return Picture(_data_uri("image/webp", file.getvalue()), None, alt, caption, *_size(figure))


def embedded_file(path: pathlib.Path, caption: str) -> Picture:
    """Embeds a PNG file.

    Raises:
      OSError: If it cannot be read, or is no PNG file.
      ValueError: If it has more than `MAX_PIXELS` or `MAX_BYTES`, which would stop a browser, or
        is no regular file.
    """
    if not path.is_file():
        raise ValueError("no regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            image.verify()
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"too large: {error}") from None
    except SyntaxError as error:  # of a damaged PNG chunk
        raise OSError(f"damaged: {error}") from None
    source = _data_uri("image/png", path.read_bytes())
    return Picture(source, None, f"{caption}.", caption, width, height)


def drawing(make: Callable[[], Figure], alt: str, caption: str = "") -> Picture:
    """Embeds a line drawing as SVG, once for light and once for dark pages.

    Args:
      make: Makes the figure in the current style of matplotlib.
      alt: See `Picture`.
      caption: See `Picture`.
    """
    sources: list[str] = []
    for ink in _INKS.values():
        style: dict[Any, Any] = {**dict.fromkeys(_INKED, ink), "grid.color": ink}
        style["svg.hashsalt"] = "vmoe_prc"
        with matplotlib.rc_context(style):
            figure = make()
            file = io.BytesIO()
            figure.savefig(file, **_SVG)
        sources.append(_data_uri("image/svg+xml", file.getvalue()))
    light, dark = sources
    return Picture(light, dark, alt, caption, *_size(figure))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _size(figure: Figure) -> tuple[int, int]:
    width, height = 100 * figure.get_size_inches()
    return round(width), round(height)
