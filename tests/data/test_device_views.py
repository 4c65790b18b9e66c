"""Views made on the device: their pixels lie where the matrices say."""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.data.device_views import device_two_views, photometric_change, random_crops, sample

SIDE, SIZE = 40, 32


def test_pixels_of_the_views_are_where_the_matrices_say():
    rows, cols = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    images = np.stack([rows] * 8 + [cols] * 8)
    crops = jax.jit(random_crops, static_argnums=(1, 2, 3, 4))
    matrices, _ = crops(jax.random.key(0), 8, 0.3, SIDE, SIZE)
    matrices = np.concatenate([matrices, matrices])
    views = jax.jit(sample, static_argnums=2)(images, matrices, SIZE)
    r, c = np.mgrid[:SIZE, :SIZE] + 0.5
    points = np.stack([r, c, np.ones_like(r)], axis=-1)
    places = np.einsum("bij,rcj->brci", np.linalg.inv(matrices), points)
    expected = np.concatenate([places[:8, ..., 0], places[8:, ..., 1]])
    # Half a pixel from the border the image is constant.
    np.testing.assert_allclose(views, np.clip(expected, 0.5, SIDE - 0.5), atol=1e-3)


def test_crops_lie_in_the_image_and_view_0_is_the_smaller():
    images = jnp.zeros((200, SIDE, SIDE))
    two_views = jax.jit(device_two_views, static_argnums=(2, 3))
    matrices = np.asarray(two_views(jax.random.key(1), images, 0.3, SIZE)[1])
    corners = np.array([[0.0, 0, 1], [SIZE, SIZE, 1]])
    places = np.einsum("bvij,nj->bvni", np.linalg.inv(matrices), corners)[..., :2]
    assert places.min() > -1e-3
    assert places.max() < SIDE + 1e-3
    area = np.abs(np.prod(places[:, :, 0] - places[:, :, 1], axis=-1))
    assert (area[:, 0] <= area[:, 1] + 1e-2).all()
    assert 0.29 * SIDE**2 < area.min() < area.max() <= SIDE**2 + 1e-2
    flips = matrices[:, :, 1, 1] < 0
    assert 0.35 < flips.mean() < 0.65


def test_photometric_changes_differ_between_views_and_stay_in_range():
    views = jnp.zeros((4, 2, 8, 8, 3))
    changed = np.asarray(jax.jit(photometric_change)(jax.random.key(2), views))
    assert np.abs(changed).max() <= 1
    np.testing.assert_array_equal(changed[..., 0], changed[..., 1])  # grey stays grey
    assert np.abs(changed[:, 0] - changed[:, 1]).mean() > 0.05
