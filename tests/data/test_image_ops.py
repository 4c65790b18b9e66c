"""Ops on pixels: inputs of every kind, values, shapes, and RandAugment's photometric ops."""

import numpy as np
import pytest
import tensorflow as tf

import vmoe_prc.data  # noqa: F401  Registers the ops.
from vmoe_prc.data import pp, randaugment

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (24, 30, 3), np.uint8)
SMOOTH = np.asarray(tf.image.resize(COLOR[:4, :5], (24, 30))).round().astype(np.uint8)


def run(process, image, seed=0, **features):
    example = {"image": tf.constant(image), **features}
    return pp.build(process, "process")(example, tf.constant([0, seed], tf.int64))


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.identity])
def test_decode_is_exact_for_png_and_arrays(encode):
    image = run("decode", encode(COLOR))["image"]
    np.testing.assert_array_equal(image, COLOR)


def test_decode_jpeg():
    image = run("decode", tf.io.encode_jpeg(SMOOTH, quality=100))["image"].numpy()
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - SMOOTH).mean() < 5


@pytest.mark.parametrize(
    "image",
    [COLOR[..., 0], COLOR[..., :1], tf.io.encode_png(COLOR[..., :1]).numpy()],
    ids=["(H, W)", "(H, W, 1)", "png"],
)
def test_grayscale_becomes_three_equal_channels(image):
    decoded = run("decode", image)["image"]
    np.testing.assert_array_equal(decoded, np.repeat(COLOR[..., :1], 3, axis=-1))


@pytest.mark.parametrize("encode", [tf.io.encode_png, lambda x: tf.io.encode_jpeg(x, quality=100)])
def test_partial_decoding_equals_decoding_and_cropping(encode):
    encoded = encode(SMOOTH)
    for seed in range(3):
        partial = run("decode_jpeg_and_inception_crop(16, 30, 60)", encoded, seed)
        assert partial["image"].shape == (16, 16, 3)
        matrix = partial["view_from_image"].numpy()
        top, left = np.round(-matrix[:2, 2] / np.diag(matrix)[:2]).astype(int)
        height, width = np.round(16 / np.diag(matrix)[:2]).astype(int)
        box = run("decode", encoded)["image"][top : top + height, left : left + width]
        expected = run("decode|resize(16)", box.numpy())["image"]
        difference = np.abs(partial["image"].numpy().astype(int) - expected.numpy())
        assert difference.mean() < 2  # chroma is upsampled within the box


def test_crops_have_the_areas_asked_for():
    image = np.zeros((200, 300, 3), np.uint8)
    for seed in range(10):
        matrices = run("decode|two_views(32, (10, 30), (60, 90))", image, seed)["view_from_image"]
        areas = [32 * 32 / np.linalg.det(m) / (200 * 300) for m in matrices.numpy()]
        assert 0.09 < areas[0] < 0.31
        assert 0.59 < areas[1] < 0.91


def test_the_smaller_crop_is_view_0():
    image = np.zeros((200, 300, 3), np.uint8)
    for seed in range(10):
        matrices = run("decode|two_views(32, (60, 90), (10, 30))", image, seed)["view_from_image"]
        assert np.linalg.det(matrices[0]) > np.linalg.det(matrices[1])


def test_sizes():
    assert run("decode|resize((7, 9))", COLOR)["image"].shape == (7, 9, 3)
    assert run("decode|resize_small(12)", COLOR)["image"].shape == (12, 15, 3)
    np.testing.assert_array_equal(
        run("decode|central_crop((10, 20))", COLOR)["image"], COLOR[7:17, 5:25]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="too small to crop"):
        run("decode|central_crop(28)", COLOR)


def test_value_range():
    image = run("decode|value_range(-1, 1)", np.array([[[0, 51, 255]]], np.uint8))["image"]
    np.testing.assert_allclose(image[0, 0], [-1, -0.6, 1], atol=1e-6)


def test_labels():
    example = run('onehot(4)|keep("labels")', COLOR, label=tf.constant(2))
    np.testing.assert_array_equal(example["labels"], [0, 0, 1, 0])
    several = run('onehot(4, inkey="real")', COLOR, real=tf.constant([0, 3]))["labels"]
    np.testing.assert_array_equal(several, [1, 0, 0, 1])
    assert set(example) == {"labels"}
    copied = run('copy("label", "target")', COLOR, label=tf.constant(2))
    assert copied["target"] == copied["label"]


def test_missing_entries_are_named():
    with pytest.raises(ValueError, match="has no 'lable'; it has image"):
        run('keep("lable")', COLOR)


@pytest.mark.parametrize("name", randaugment.PHOTOMETRIC)
@pytest.mark.parametrize("image", [COLOR, np.full((5, 5, 3), 7, np.uint8)], ids=["noise", "flat"])
def test_photometric_ops_keep_shape_and_dtype(name, image):
    result = randaugment.PHOTOMETRIC[name](tf.constant(image), 1.0)
    assert result.dtype == tf.uint8
    assert result.shape == image.shape


def test_photometric_values():
    ops = {
        name: lambda x, n=name: randaugment.PHOTOMETRIC[n](tf.constant(x), 0.5).numpy()
        for name in randaugment.PHOTOMETRIC
    }
    image = np.array([[[10, 100, 200]], [[60, 150, 250]]], np.uint8)
    np.testing.assert_array_equal(ops["invert"](image), 255 - image)
    np.testing.assert_array_equal(ops["autocontrast"](image)[:, 0], [[0] * 3, [255] * 3])
    np.testing.assert_array_equal(ops["solarize"](image)[0, 0], [10, 100, 55])
    np.testing.assert_array_equal(ops["solarize_add"](image)[0, 0], [65, 155, 200])
    np.testing.assert_array_equal(ops["posterize"](image), image & 0b11000000)
    # A factor of 1 leaves the image as it is: level * 1.8 + 0.1 = 1.
    for name in ("color", "contrast", "brightness", "sharpness"):
        same = randaugment.PHOTOMETRIC[name](tf.constant(COLOR), 0.5).numpy().astype(int)
        assert np.abs(same - COLOR).max() <= 1


def test_equalize_spreads_the_histogram_evenly():
    dark = (SMOOTH // 4).astype(np.uint8)
    result = randaugment.equalize(tf.constant(np.tile(dark, (4, 4, 1))), 1.0).numpy()
    assert result.max() == 255
    assert abs(np.median(result[..., 0]) - 127) < 30


def test_cutout_grays_a_square():
    image = np.zeros((40, 40, 3), np.uint8)
    square = randaugment._cutout(tf.constant(image), 5, tf.constant([3, 4], tf.int64)).numpy()
    assert set(np.unique(square)) == {0, 128}
    assert (square[..., 0] == 128).sum() <= 100
