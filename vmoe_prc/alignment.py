"""Matches the patches of two views of an image that show the same place.

Points are homogeneous pixel coordinates (row, col, 1); a pixel [r, c] covers
[r, r+1) x [c, c+1). A matrix `a_from_b` maps points of b to points of a; "image" is the original
image as it was decoded, before any crop, and "view" what the model sees.
"""

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Int

Size = int | tuple[int, int]


def view1_from_view0(view_from_image: Float[Array, "B 2 3 3"]) -> Float[Array, "B 3 3"]:
    """Composes the maps from the two views to their image.

    Args:
      view_from_image: (B, 2, 3, 3) maps of the original image to its two views.

    Returns:
      (B, 3, 3) map from pixel coordinates of view 0 to pixel coordinates of view 1.
    """
    view0, view1 = view_from_image[:, 0], view_from_image[:, 1]
    return _matmul(view1, _inverse(view0))


def match_patches(
    view1_from_view0: Float[Array, "B 3 3"],
    image_size: Size,
    patch_size: Size,
    class_token: bool = True,
    pair_class_tokens: bool = False,
) -> Int[Array, "B X 2"]:
    """Pairs each patch of view 0 with the patch of view 1 that its centre falls into.

    The centre (i*p + p//2, j*p + p//2) of patch (i, j) of view 0 is mapped into view 1;
    the patch that contains it there is its match (PRC).

    Args:
      view1_from_view0: (B, 3, 3) map of pixel coordinates between the views.
      image_size: Side of the views in pixels, or (height, width).
      patch_size: Side of a patch in pixels, or (height, width).
      class_token: Whether token 0 is the class token, which shifts patch indices by one.
      pair_class_tokens: Whether to pair the class tokens of the views as well.

    Returns:
      (B, X, 2) int32 token indices (view 0, view 1), X = P patches in row-major order,
      and the class pair (0, 0) last if asked for. (-1, -1) marks a patch without match.

    Raises:
      ValueError: If the patches do not tile the image, or class tokens that do not exist
        are to be paired.
    """
    (height, width), (patch_height, patch_width) = _pair(image_size), _pair(patch_size)
    if height % patch_height or width % patch_width:
        raise ValueError(f"patch_size = {patch_size} does not divide image_size = {image_size}")
    if pair_class_tokens and not class_token:
        raise ValueError("pair_class_tokens = True needs class_token = True")
    rows, cols = height // patch_height, width // patch_width
    i, j = jnp.divmod(jnp.arange(rows * cols), cols)
    row, col = _transform(
        view1_from_view0,
        (i * patch_height + patch_height // 2).astype(jnp.float32),
        (j * patch_width + patch_width // 2).astype(jnp.float32),
    )
    # A float comparison first: a point far outside would overflow int32.
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    row, col = jnp.where(inside, row, 0), jnp.where(inside, col, 0)
    match = (row // patch_height) * cols + col // patch_width

    offset = int(class_token)
    pairs = jnp.stack(
        jnp.broadcast_arrays(i * cols + j + offset, match.astype(jnp.int32) + offset),
        axis=-1,
    )
    pairs = jnp.where(inside[..., None], pairs, -1).astype(jnp.int32)
    if pair_class_tokens:
        class_pair = jnp.zeros((pairs.shape[0], 1, 2), jnp.int32)
        pairs = jnp.concatenate([pairs, class_pair], axis=1)
    return pairs


def shuffle_partners(
    key: jax.Array, pairs: Int[Array, "B X 2"], class_pair: bool = False
) -> Int[Array, "B X 2"]:
    """Pairs the matched patches of each image at random, as a control for PRC.

    The same patches are paired as before, only with other partners of the same image.

    Args:
      key: Random key.
      pairs: (B, X, 2) of `match_patches`.
      class_pair: Whether the last pair is the class tokens, which stay a pair.
    """
    matched = jnp.asarray(pairs[..., 0] >= 0)
    if class_pair:
        matched = matched.at[:, -1].set(False)
    # Two orders of the pairs, both with the matched ones first: at random, and as they come.
    # The n-th matched pair gets the partner of the n-th at random; argsort inverts an order.
    draws = jnp.where(matched, jax.random.uniform(key, matched.shape), jnp.inf)
    at_random = jnp.argsort(draws, axis=1)
    as_they_come = jnp.argsort(~matched, axis=1, stable=True)
    partners = jnp.take_along_axis(pairs[..., 1], at_random, axis=1)
    partners = jnp.take_along_axis(partners, jnp.argsort(as_they_come, axis=1), axis=1)
    return jnp.stack([pairs[..., 0], jnp.where(matched, partners, pairs[..., 1])], axis=-1)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _transform(
    matrix: Float[Array, "B 3 3"], row: Float[Array, " P"], col: Float[Array, " P"]
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    m = matrix.astype(jnp.float32)[:, :, :, None]
    # Written out: a matrix unit would round the coordinates to bfloat16 or TF32.
    y, x, w = (m[:, k, 0] * row + m[:, k, 1] * col + m[:, k, 2] for k in range(3))
    return y / w, x / w


def _matmul(a: Float[Array, "B 3 3"], b: Float[Array, "B 3 3"]) -> Float[Array, "B 3 3"]:
    return jnp.sum(a[:, :, :, None] * b[:, None, :, :], axis=2)


def _inverse(m: Float[Array, "B 3 3"]) -> Float[Array, "B 3 3"]:
    """Inverts by cofactors: rows of the adjugate are cross products of columns."""
    a, b, c = m[:, :, 0], m[:, :, 1], m[:, :, 2]
    adjugate = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    determinant = jnp.sum(a * adjugate[:, 0], axis=-1)
    return adjugate / determinant[:, None, None]
