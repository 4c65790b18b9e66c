"""Two random crops of each image, made on the device, with the matrices that match them.

For small images that fit into the device's memory: a step draws its own batch and needs no input
pipeline. Crops are drawn by area and aspect ratio, as in `two_views`, but uniformly in the
logarithm of the ratio and with sides between pixels; sampling is bilinear.
"""

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float

ASPECT_RATIOS = (3 / 4, 4 / 3)


def device_two_views(
    key: jax.Array,
    images: Float[Array, "B side side"],
    smallest_area: float,
    size: int,
) -> tuple[Float[Array, "B 2 size size 3"], Float[Array, "B 2 3 3"]]:
    """Crops two views of each image, each flipped with probability 1/2.

    As in PRC, view 0 is the one with the smaller crop.

    Args:
      key: Random key.
      images: (B, side, side) grey images.
      smallest_area: Smallest area of a crop as a fraction of the image.
      size: Side of the views in pixels.

    Returns:
      (B, 2, size, size, 3) views, and (B, 2, 3, 3) `view_from_image`, which takes homogeneous
      pixel coordinates (row, col, 1) of the image to coordinates of the view.
    """
    side = images.shape[1]
    draws = [random_crops(k, len(images), smallest_area, side, size) for k in jax.random.split(key)]
    (first, first_area), (second, second_area) = draws
    swap = (first_area > second_area)[:, None, None]
    matrices = jnp.stack([jnp.where(swap, second, first), jnp.where(swap, first, second)], axis=1)
    views = jnp.stack([sample(images, matrices[:, view], size) for view in (0, 1)], axis=1)
    return jnp.repeat(views[..., None], 3, axis=-1), matrices


def random_crops(
    key: jax.Array, count: int, smallest_area: float, side: int, size: int
) -> tuple[Float[Array, "B 3 3"], Float[Array, " B"]]:
    """Draws crops with flips.

    Args:
      key: Random key.
      count: B.
      smallest_area: Smallest area as a fraction of the image; the largest is 1.
      side: Side of the images in pixels.
      size: Side of the views in pixels.

    Returns:
      (B, 3, 3) `view_from_image`, and (B,) areas in pixels.
    """
    keys = jax.random.split(key, 5)
    area = jax.random.uniform(keys[0], (count,), minval=smallest_area, maxval=1.0)
    low, high = jnp.log(jnp.asarray(ASPECT_RATIOS))
    ratio = jnp.exp(jax.random.uniform(keys[1], (count,), minval=low, maxval=high))
    # A crop that would be longer than the image is cut to it.
    height = jnp.minimum(jnp.sqrt(area / ratio), 1) * side
    width = jnp.minimum(jnp.sqrt(area * ratio), 1) * side
    top = jax.random.uniform(keys[2], (count,)) * (side - height)
    left = jax.random.uniform(keys[3], (count,)) * (side - width)
    flipped = jax.random.bernoulli(keys[4], 0.5, (count,))
    row_scale, col_scale = size / height, size / width
    # A flip maps column c of the view to size - c.
    col_factor = jnp.where(flipped, -col_scale, col_scale)
    col_shift = jnp.where(flipped, size + col_scale * left, -col_scale * left)
    zero, one = jnp.zeros(count), jnp.ones(count)
    matrix = jnp.stack(
        [row_scale, zero, -row_scale * top, zero, col_factor, col_shift, zero, zero, one], axis=-1
    )
    return matrix.reshape(count, 3, 3), height * width


def sample(
    images: Float[Array, "B H W"], view_from_image: Float[Array, "B 3 3"], size: int
) -> Float[Array, "B size size"]:
    """Samples views bilinearly; beyond the border the border's pixels are repeated.

    Args:
      images: (B, H, W).
      view_from_image: (B, 3, 3) matrices that scale, shift and flip, as of `random_crops`.
      size: Side of the views in pixels.
    """
    centers = jnp.arange(size) + 0.5

    def weights(axis: int) -> jax.Array:
        # Rows and columns are independent, so that sampling is a product with two matrices.
        scale, shift = view_from_image[:, axis, axis, None], view_from_image[:, axis, 2, None]
        length = images.shape[1 + axis]
        position = jnp.clip((centers - shift) / scale - 0.5, 0, length - 1)  # (B, size)
        distance = jnp.abs(position[..., None] - jnp.arange(length))
        return jnp.maximum(0, 1 - distance)  # (B, size, length)

    return jnp.einsum("boh,bhw,bpw->bop", weights(0), images, weights(1))


def photometric_change(
    key: jax.Array, views: Float[Array, "B 2 H W 3"], noise: float = 0.3, gain: float = 0.5
) -> Float[Array, "B 2 H W 3"]:
    """Changes contrast and adds noise, drawn for each view independently.

    Args:
      key: Random key.
      views: (B, 2, H, W, 3) pixels in [-1, 1].
      noise: Largest standard deviation of the noise, as a fraction of [0, 1].
      gain: Largest logarithm of the factor on the distance from black.

    Returns:
      Views in [-1, 1].
    """
    keys = jax.random.split(key, 3)
    shape = (*views.shape[:2], 1, 1, 1)
    factor = jnp.exp(jax.random.uniform(keys[0], shape, minval=-gain, maxval=gain))
    sigma = 2 * jax.random.uniform(keys[1], shape, maxval=noise)
    grain = jax.random.normal(keys[2], (*views.shape[:-1], 1))
    return jnp.clip((views + 1) * factor - 1 + sigma * grain, -1, 1)
