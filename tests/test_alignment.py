"""Patch matching against the golden pairs, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc import alignment

CASES = [f"{sizes}_{kind}" for sizes in ("32_8", "224_32", "96_16") for kind in ("crop", "affine")]


@pytest.mark.parametrize("case", CASES)
def test_golden_view1_from_view0(golden, close, case):
    data = golden("correspondence")
    actual = alignment.view1_from_view0(jnp.asarray(data[f"view_from_image_{case}"]))
    close(actual, data[f"view1_from_view0_{case}"])


@pytest.mark.parametrize("pair_class_tokens", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_golden_pairs(golden, case, pair_class_tokens):
    data = golden("correspondence")
    image_size, patch_size = map(int, case.split("_")[:2])
    match = jax.jit(alignment.match_patches, static_argnums=(1, 2, 3, 4))
    expected = data[f"pairs_{case}_cls{int(pair_class_tokens)}"]
    for matrix in (
        jnp.asarray(data[f"view1_from_view0_{case}"]),
        alignment.view1_from_view0(jnp.asarray(data[f"view_from_image_{case}"])),
    ):
        actual = match(matrix, image_size, patch_size, True, pair_class_tokens)
        assert actual.dtype == jnp.int32
        np.testing.assert_array_equal(actual, expected)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), p=st.integers(1, 5))
def test_identity_matches_each_patch_with_itself(rows, cols, p):
    match = jax.jit(alignment.match_patches, static_argnums=(1, 2, 3))
    pairs = match(jnp.eye(3)[None], (rows * p, cols * p), p, False)
    index = np.arange(rows * cols)
    np.testing.assert_array_equal(pairs[0], np.stack([index, index], -1))


def test_flip_reverses_columns():
    flip = jnp.array([[1.0, 0, 0], [0, -1, 32], [0, 0, 1]])[None]
    pairs = np.asarray(alignment.match_patches(flip, 32, 8, class_token=False))[0]
    # The centre of an even patch, (4, 4), is a pixel corner: it stays in the mirrored patch.
    assert pairs[0].tolist() == [0, 3]
    assert pairs[6].tolist() == [6, 5]


def test_points_far_outside_have_no_match():
    shift = jnp.array([[1.0, 0, 1e12], [0, 1, 0], [0, 0, 1]])[None]
    assert (alignment.match_patches(shift, 32, 8) == -1).all()


@given(seed=st.integers(0, 1000), class_pair=st.booleans())
def test_shuffled_partners_are_the_same_patches_of_the_same_image(seed, class_pair):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(1, 9, (4, 8, 2))
    pairs[rng.random((4, 8)) < 0.4] = -1
    if class_pair:
        pairs[:, -1] = 0
    shuffled = np.asarray(
        alignment.shuffle_partners(jax.random.key(seed), jnp.asarray(pairs, jnp.int32), class_pair)
    )
    np.testing.assert_array_equal(shuffled[..., 0], pairs[..., 0])
    np.testing.assert_array_equal(shuffled[..., 1] < 0, pairs[..., 1] < 0)
    np.testing.assert_array_equal(np.sort(shuffled[..., 1]), np.sort(pairs[..., 1]))
    if class_pair:
        assert (shuffled[:, -1] == 0).all()


def test_partners_are_shuffled_evenly():
    identity = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32)[:, None], (4000, 4, 2))
    shuffled = alignment.shuffle_partners(jax.random.key(0), identity)
    shares = np.stack([np.bincount(column, minlength=4) for column in shuffled[..., 1].T]) / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.03)  # more than four standard deviations


def test_errors():
    with pytest.raises(ValueError, match="patch_size = 7 does not divide image_size = 32"):
        alignment.match_patches(jnp.eye(3)[None], 32, 7)
    with pytest.raises(ValueError, match="needs class_token"):
        alignment.match_patches(jnp.eye(3)[None], 32, 8, False, True)
