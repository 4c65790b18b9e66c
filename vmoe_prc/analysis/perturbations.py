"""Perturbations of images by a given amount: noise, warps, compression, corruptions.

Images are (N, H, W, C) float32 in [0, 1] before and after; `robustness.make_perturbation`
converts from and to the value range of the data.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Scalar

Images = Float[Array, "N H W C"]
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
# Smallest side that the library accepts; its severities are designed for ImageNet's 224.
SMALLEST_CORRUPTED = 32
_SEEDED = ("impulse_noise", "glass_blur")


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A kind of perturbation.

    Attributes:
      levels: Default levels.
      unit: Unit of the levels.
      apply: The function (images, level, seed) -> images.
      on_host: Whether it takes and returns NumPy arrays, and cannot be jitted; it takes one
        seed for each image.
    """

    levels: tuple[float, ...]
    unit: str
    apply: Callable[[Images, Scalar, Scalar], Images]
    on_host: bool = False


def gaussian_noise(images: Images, sigma: Scalar, seed: Scalar) -> Images:
    """Adds noise of standard deviation `sigma`, and clips to [0, 1]."""
    noise = jax.random.normal(jax.random.key(seed), images.shape)
    return jnp.clip(images + sigma * noise, 0, 1)


def shift(images: Images, pixels: Scalar, seed: Scalar = 0) -> Images:
    """Moves the image right by `pixels`, filling the border with its reflection."""
    del seed
    return _warp(images, lambda row, col: (row, col - pixels))


def rotation(images: Images, pixels: Scalar, seed: Scalar = 0) -> Images:
    """Turns the image about its centre, counterclockwise.

    The angle is `2 * pixels / min(H, W)`: the midpoint of the nearer edge moves by `pixels`
    along its circle, for every image size.
    """
    del seed
    angle = 2 * pixels / min(images.shape[1:3])
    centre = [(size - 1) / 2 for size in images.shape[1:3]]

    def source(row, col):
        y, x = row - centre[0], col - centre[1]
        return (
            jnp.cos(angle) * y + jnp.sin(angle) * x + centre[0],
            -jnp.sin(angle) * y + jnp.cos(angle) * x + centre[1],
        )

    return _warp(images, source)


def central_crop(images: Images, removed: Scalar, seed: Scalar = 0) -> Images:
    """Cuts off the share `removed` of each side length and enlarges the rest to full size."""
    del seed
    centre = [(size - 1) / 2 for size in images.shape[1:3]]
    return _warp(
        images,
        lambda row, col: (
            (row - centre[0]) * (1 - removed) + centre[0],
            (col - centre[1]) * (1 - removed) + centre[1],
        ),
    )


def jpeg(images: Images, loss: Scalar, seeds: Any = 0) -> np.ndarray:
    """Compresses with JPEG at quality 100 - `loss`."""
    del seeds
    from PIL import Image

    def compress(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(100 - loss))
        return np.asarray(Image.open(file))

    return _on_bytes(images, compress)


def corruption(name: str, images: Images, severity: Scalar, seeds: Any) -> np.ndarray:
    """Applies a corruption of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).

    Args:
      name: One of `CORRUPTIONS`.
      images: The images.
      severity: 1 to 5; 0 changes nothing.
      seeds: (N,) seeds of the random choices; or one seed, of all images.
    """
    if not severity:
        return np.asarray(images)
    import imagecorruptions

    def corrupt(image, seed):
        np.random.seed(seed)
        # Some corruptions take a seed; the others draw from NumPy's global state.
        seeds = {"seed": np.random.randint(2**31)} if name in _SEEDED else {}
        return imagecorruptions.corrupt(
            image, corruption_name=name, severity=int(severity), **seeds
        )

    state = np.random.get_state()
    try:
        return _on_bytes(images, corrupt, np.broadcast_to(seeds, len(images)).tolist())
    finally:
        np.random.set_state(state)


PERTURBATIONS = {
    "gaussian_noise": Perturbation(
        (0.0, 0.02, 0.05, 0.1, 0.2, 0.3), "standard deviation, pixel range 1", gaussian_noise
    ),
    "shift": Perturbation((0, 1, 2, 3, 4), "pixels", shift),
    "rotation": Perturbation((0, 1, 2, 3, 4), "pixels at the edge", rotation),
    "crop": Perturbation((0, 0.05, 0.1, 0.2, 0.3), "share of the side cut off", central_crop),
    "jpeg": Perturbation((0, 10, 25, 50, 75, 90), "100 - quality", jpeg, on_host=True),
    **{
        f"imagenet_c/{name}": Perturbation(
            (0, 1, 2, 3, 4, 5), "severity", functools.partial(corruption, name), on_host=True
        )
        for name in CORRUPTIONS
    },
}


def _warp(images: Images, source: Callable) -> Images:
    """Samples bilinearly; `source` maps a pixel of the result to a pixel of the image."""
    grid = jnp.meshgrid(*(jnp.arange(float(size)) for size in images.shape[1:3]), indexing="ij")
    coordinates = source(*grid)

    def channel(image):
        return jax.scipy.ndimage.map_coordinates(image, coordinates, order=1, mode="reflect")

    planes = jnp.moveaxis(images, -1, 1)
    return jnp.moveaxis(jax.vmap(jax.vmap(channel))(planes), 1, -1)


def _on_bytes(images: Images, function: Callable[..., np.ndarray], *rows: list) -> np.ndarray:
    pixels = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    changed = np.stack([function(*each) for each in zip(pixels, *rows, strict=True)])
    return changed.astype(np.float32) / np.float32(255)
