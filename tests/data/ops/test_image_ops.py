"""Ops on pixels: inputs of every kind, values, shapes, and RandAugment's photometric ops."""

import io
import itertools

import numpy as np
import PIL.Image
import pytest
import scipy.stats
import tensorflow as tf

from vmoe_prc.data.ops import image_ops, randaugment, registry
from vmoe_prc.data.ops.image_ops import sample_crop
from vmoe_prc.data.ops.photometric import PHOTOMETRIC
from vmoe_prc.data.ops.resample import resample, square, uncovered

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (24, 30, 3), np.uint8)
SMOOTH = np.asarray(tf.image.resize(COLOR[:4, :5], (24, 30))).round().astype(np.uint8)


def run(process, image, seed=0, **features):
    return registry.apply(registry.build(process, "process"), {"image": image, **features}, seed)


def png(image):
    return tf.io.encode_png(image).numpy()


def jpeg(image, **options):
    return tf.io.encode_jpeg(image, **options).numpy()


@pytest.mark.parametrize("encode", [png, lambda image: image])
def test_decode_is_exact_for_png_and_arrays(encode):
    image = run("decode", encode(COLOR))["image"]
    np.testing.assert_array_equal(image, COLOR)


@pytest.mark.parametrize("size", [(24, 30), (375, 500), (17, 333)])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 100},
        {"quality": 40},
        {"progressive": True},
        {"chroma_downsampling": False},
        {"format": "grayscale"},
    ],
    ids=str,
)
def test_jpegs_are_decoded_as_tensorflow_does(size, options):
    picture = tf.image.resize(COLOR, size).numpy().round().astype(np.uint8)
    encoded = jpeg(picture[..., :1] if "format" in options else picture, **options)
    expected = tf.io.decode_jpeg(encoded, channels=3).numpy()
    image = run("decode", encoded)["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_other_jpegs_are_left_to_tensorflow():
    """Four channels, and a few bytes lost in the middle."""
    cmyk = io.BytesIO()
    PIL.Image.fromarray(COLOR).convert("CMYK").save(cmyk, "jpeg")
    whole = jpeg(tf.image.resize(COLOR, (300, 300)).numpy().astype(np.uint8))
    damaged = whole[:2000] + bytes(300) + whole[2300:]
    for encoded in (cmyk.getvalue(), damaged):
        expected = tf.io.decode_jpeg(encoded, channels=3).numpy()
        np.testing.assert_array_equal(run("decode", encoded)["image"], expected)


@pytest.mark.parametrize("encoded", [b"", b"no image", jpeg(COLOR)[:300], png(COLOR)[:60]])
def test_what_cannot_be_decoded_says_so_in_a_line(encoded):
    with pytest.raises(registry.BadExampleError) as error:
        run("decode", encoded)
    assert "{{" not in str(error.value)
    assert "[Op" not in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value)


@pytest.mark.parametrize(
    "image",
    [COLOR[..., 0], COLOR[..., :1], png(COLOR[..., :1])],
    ids=["(H, W)", "(H, W, 1)", "png"],
)
def test_grayscale_becomes_three_equal_channels(image):
    decoded = run("decode", image)["image"]
    np.testing.assert_array_equal(decoded, np.repeat(COLOR[..., :1], 3, axis=-1))


def test_v_moes_name_for_decoding_and_cropping():
    for seed in range(3):
        both = run("decode_jpeg_and_inception_crop(16, 30, 60)", png(SMOOTH), seed)
        expected = run("decode|inception_crop(16, 30, 60)", png(SMOOTH), seed)
        for key in ("image", "view_from_image"):
            np.testing.assert_array_equal(both[key], expected[key])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(375, 500), (90, 400), (8, 8)])
@pytest.mark.parametrize("area", [(5, 100), (5, 70), (60, 100), (95, 100)])
def test_crops_are_distributed_as_tensorflows(shape, area):
    """Height, width, row and column: their means and quantiles, within the noise of sampling."""
    rng = np.random.default_rng(0)
    ours = np.array([sample_crop(shape, area, rng) for _ in range(4000)])

    def sample(i):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            (*shape, 3),
            tf.zeros((0, 0, 4)),
            tf.stack([i, i]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(area[0] / 100, area[1] / 100),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin, size], axis=0)

    # Eagerly this takes ten times as long.
    theirs = tf.function(lambda: tf.map_fn(sample, tf.range(4000)))().numpy()[:, [0, 1, 3, 4]]
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3
        assert (a.min(), a.max()) == pytest.approx((b.min(), b.max()), abs=0.05 * max(shape))


@pytest.mark.parametrize("size", [(256, 341), (128, 128), (600, 800)])
def test_resizing_is_tensorflows_to_rounding(size):
    picture = tf.image.resize(COLOR, (375, 500)).numpy().round().astype(np.uint8)
    expected = tf.image.resize(picture, size).numpy().round()
    difference = np.abs(run(f"decode|resize({size})", picture)["image"] - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3


def test_crops_have_the_areas_asked_for():
    image = np.zeros((200, 300, 3), np.uint8)
    for seed in range(10):
        matrices = run("decode|two_views(32, (10, 30), (60, 90))", image, seed)["view_from_image"]
        areas = [32 * 32 / np.linalg.det(m) / (200 * 300) for m in matrices]
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
    with pytest.raises(registry.BadExampleError, match="24x30 pixels is too small to crop 28x28"):
        run("decode|central_crop(28)", COLOR)


def test_value_range():
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    example = run('decode|value_range(-1, 1)|keep("image")', pixels)
    np.testing.assert_array_equal(example["image"], pixels)
    images = image_ops.rescale(example["image"], (-1, 1))
    np.testing.assert_allclose(images[0, 0], [-1, -0.6, 1], atol=1e-6)
    floats = run("decode|value_range(-1, 1)", pixels.astype(np.float32))["image"]
    np.testing.assert_allclose(floats[0, 0], [-1, -0.6, 1], atol=1e-6)


def test_labels():
    example = run('onehot(4)|keep("labels")', COLOR, label=2)
    np.testing.assert_array_equal(example["labels"], [0, 0, 1, 0])
    several = run('onehot(4, inkey="real")', COLOR, real=[0, 3])["labels"]
    np.testing.assert_array_equal(several, [1, 0, 0, 1])
    assert set(example) == {"labels"}
    np.testing.assert_array_equal(run("onehot(4)", COLOR, label=-1)["labels"], np.zeros(4))
    with pytest.raises(registry.PreprocessError, match="'label' may be 4, and num_classes = 4"):
        run("onehot(4)", COLOR, label=4)
    for label in ("cat", 1.0):
        with pytest.raises(registry.PreprocessError, match="'label' must be an integer class"):
            run("onehot(4)", COLOR, label=label)
    copied = run('copy("label", "target")', COLOR, label=2)
    assert copied["target"] == copied["label"]


def test_missing_entries_are_named():
    with pytest.raises(ValueError, match="has no 'lable'; it has image"):
        run('keep("lable")', COLOR)


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("image", [COLOR, np.full((5, 5, 3), 7, np.uint8)], ids=["noise", "flat"])
def test_photometric_ops_keep_shape_and_dtype(name, image):
    result = PHOTOMETRIC[name](image, 1.0, image)
    assert result.dtype == np.uint8
    assert result.shape == image.shape


def test_photometric_values():
    image = np.array([[[10, 100, 200]], [[60, 150, 250]]], np.uint8)

    def values(name, level=0.5):
        return PHOTOMETRIC[name](image, level, image)

    np.testing.assert_array_equal(values("invert"), 255 - image)
    np.testing.assert_array_equal(values("autocontrast")[:, 0], [[0] * 3, [255] * 3])
    np.testing.assert_array_equal(values("solarize")[0, 0], [10, 100, 55])
    np.testing.assert_array_equal(values("solarize_add")[0, 0], [65, 155, 200])
    np.testing.assert_array_equal(values("posterize"), image & 0b11000000)
    np.testing.assert_array_equal(values("brightness", 1.0)[0, 0], [19, 190, 255])
    # 1.9 times the distance from gray, which is 84.5 at the first pixel.
    np.testing.assert_allclose(values("color", 1.0)[0, 0], [0, 113.95, 255], atol=0.6)
    # A factor of 1 leaves the image as it is: level * 1.8 + 0.1 = 1.
    for name in ("color", "contrast", "brightness", "sharpness"):
        same = PHOTOMETRIC[name](COLOR, 0.5, COLOR).astype(int)
        assert np.abs(same - COLOR).max() <= 1


def test_sharpness_doubles_what_smoothing_takes_and_keeps_the_border():
    image = np.full((5, 5, 3), 100, np.uint8)
    image[2, 2] = 113
    sharp = PHOTOMETRIC["sharpness"](image, 1.0, image)
    # Smoothed, the middle is 105 and its neighbours 101.
    np.testing.assert_allclose(sharp[2, 2], 105 + 1.9 * 8, atol=0.6)
    np.testing.assert_allclose(sharp[1, 1], 101 - 1.9, atol=0.6)
    assert (sharp[0] == 100).all()


def test_equalize_spreads_the_histogram_evenly():
    dark = np.tile((SMOOTH // 4).astype(np.uint8), (4, 4, 1))
    result = PHOTOMETRIC["equalize"](dark, 1.0, dark)
    assert result.max() == 255
    assert abs(np.median(result[..., 0]) - 127) < 30


def test_cutout_takes_a_square():
    marks = square(np.eye(3), (40, 40), (20, 30), 5)
    assert (marks[15:25, 25:35] == 255).all()
    assert (marks > 0).sum() == 100
    assert (square(np.eye(3), (40, 40), (1, 39), 5) > 0).sum() == 6 * 6


def one_after_another(image, names, positions):
    """RandAugment as it is defined: every op on the pixels that the last one made."""
    size = image.shape[:2]
    for name, position in zip(names, positions, strict=True):
        if name in PHOTOMETRIC:
            image = PHOTOMETRIC[name](image, 1.0, image)
            continue
        if name == randaugment.CUTOUT:
            marks = square(np.eye(3), size, (position * size).astype(int).tolist(), 8)
        else:
            move = randaugment.GEOMETRIC[name](1.0, *size, 20.0)
            marks = uncovered(move, size)
            image = resample(image, (0, 0, *size), move, size)
        image = np.where(marks[..., None] > 0, np.uint8(randaugment.GRAY), image)
    return image


def at_once(image, names, positions):
    size = image.shape[:2]
    products = [np.eye(3)]
    for name in reversed(names):
        move = np.eye(3)
        if name in randaugment.GEOMETRIC:
            move = randaugment.GEOMETRIC[name](1.0, *size, 20.0)
        products.insert(0, products[0] @ move)
    return randaugment.paint_layers(
        np.array([randaugment.OP_NAMES.index(name) for name in names]),
        np.stack(products[:-1]),
        positions,
        lambda moves: resample(image, (0, 0, *size), moves, size),
        level=1.0,
        cutout_half=8,
    )


@pytest.mark.parametrize("first", randaugment.OP_NAMES)
def test_randaugment_at_once_is_that_of_one_op_after_another(first):
    image = np.asarray(tf.image.resize(COLOR[:4, :5], (64, 64))).round().astype(np.uint8)
    positions = np.array([[0.3, 0.4], [0.6, 0.7], [0.5, 0.5]])
    # By whole pixels, so that nothing but the order of the ops makes a difference.
    for names in itertools.product([first], randaugment.OP_NAMES, ["invert", "translate_x"]):
        expected = one_after_another(image, names, positions).astype(int)
        difference = np.abs(at_once(image, names, positions) - expected)
        # Single pixels at the edges of what is gray, and where values jump, may differ.
        assert difference.mean() < 3, names
        assert (difference > 40).mean() < 0.02, names
