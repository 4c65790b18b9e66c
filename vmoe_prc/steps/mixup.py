"""Mixup as in V-MoE: each image is mixed with its successors on its device."""

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float

GRANULARITIES = ("batch", "device", "example")


def mixup(
    key: jax.Array,
    images: Float[Array, "N H W 3"],
    labels: Float[Array, "N classes"],
    *,
    concentration: float,
    size: int = 2,
    granularity: str = "device",
    num_devices: int = 1,
) -> tuple[Float[Array, "N H W 3"], Float[Array, "N classes"]]:
    """Mixes images and labels with Dirichlet weights (arXiv 1710.09412).

    The largest weight goes to the image itself, so that each image prevails in one mixture.

    Args:
      key: Random key.
      images: (N, H, W, 3).
      labels: (N, classes).
      concentration: Parameter of the Dirichlet distribution; with `size` 2 of the Beta
        distribution.
      size: Number of images in each mixture.
      granularity: The images that share weights: 'batch', 'device' (the images of a device) or
        'example' (each image has its own).
      num_devices: Devices that the batch is split over; no image is sent from one to another.

    Raises:
      ValueError: If an option is out of range, or the devices do not divide the batch.
    """
    num_images = images.shape[0]
    if concentration <= 0 or granularity not in GRANULARITIES:
        raise ValueError(
            f"mixup needs concentration > 0 and a granularity of {', '.join(GRANULARITIES)}; "
            f"got {concentration} and {granularity!r}"
        )
    if num_images % num_devices or num_images // num_devices < size:
        raise ValueError(
            f"cannot mix {size} images each on {num_devices} devices with {num_images} images"
        )
    num_weights = {"batch": 1, "device": num_devices, "example": num_images}[granularity]
    weights = jax.random.dirichlet(key, jnp.full(size, concentration), (num_weights,))
    weights = jnp.sort(weights, axis=-1, descending=True)
    # (1 or devices, 1 or images of a device, size)
    weights = weights.reshape(1 if granularity == "batch" else num_devices, -1, size)

    def mix(x):
        groups = x.reshape(num_devices, -1, *x.shape[1:])
        parts = (
            weights[..., i].reshape(*weights.shape[:2], *[1] * (x.ndim - 1))
            * jnp.roll(groups, -i, axis=1)
            for i in range(size)
        )
        return jnp.asarray(sum(parts)).reshape(x.shape).astype(x.dtype)

    return mix(images), mix(labels)
