"""Routing maps that a reader can point at, for pages that fetch nothing."""

import base64
import io
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.colors import to_hex
from PIL import Image

from vmoe_prc.arrays import Bool, Float, Int
from vmoe_prc.figures.palette import expert_colors

SCRIPT, STYLE = "routing_map.js", "routing_map.css"
# Decimals of the gates that a page shows.
DECIMALS = 3


def read_asset(name: str) -> str:
    """Reads a file of this package: `SCRIPT` defines the class `RoutingMap`, `STYLE` its style."""
    return (resources.files(__name__) / name).read_text()


def expert_hex_colors(num_experts: int) -> list[str]:
    """Returns the colours of the experts in all figures, as `#rrggbb`."""
    return [to_hex(color) for color in expert_colors(num_experts)]


def picture_url(pixels: UInt8[np.ndarray, "H W 3"], form: str = "PNG", **options: Any) -> str:
    """Encodes a picture as a `data:` URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{content}"


def patch_choices(
    experts: Int[np.ndarray, "T K"],
    gates: Float[np.ndarray, "T K"] | None,
    kept: Bool[np.ndarray, "T K"],
    num_patches: int,
    most: int,
) -> dict[str, Any]:
    """Lists the choices of the patches of an image as `RoutingMap` shows them.

    Args:
      experts: Experts of T tokens, best first; the patches are the last tokens.
      gates: Their gates; None to leave them out.
      kept: False where an expert did not take the token.
      num_patches: Patches of the image.
      most: Choices of a patch that are listed.

    Returns:
      `experts`, `gates` and `kept`; `gates` only if they are given, `kept` only if
      an expert did not take a token.
    """
    choices = {"experts": experts[-num_patches:, :most].tolist()}
    if gates is not None:
        choices["gates"] = np.round(gates[-num_patches:, :most], DECIMALS).astype(float).tolist()
    if not kept.all():
        choices["kept"] = kept[-num_patches:, :most].tolist()
    return choices
