"""Ops and arguments by the names of V-MoE and big_vision."""

import numpy as np
import pytest
import tensorflow as tf

from vmoe_prc.config import ConfigError
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.registry import PreprocessError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 40, 3)).astype(np.uint8)


def run(process, seed=0, **example):
    return registry.apply(registry.build(process, "process"), {"image": PIXELS, **example}, seed)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("central_crop(crop_size=8)", "central_crop(8)"),
        ("resize(resize_size=8, resize_method='bilinear')", "resize(8)"),
        ("inception_crop(resize_size=8, area_min=20)", "inception_crop(8, 20)"),
        ("resize_small(smaller_size=8)", "resize_small(8)"),
        ("value_range(vmin=0, vmax=1)|keep('image')", "value_range(0, 1)|keep('image')"),
        ("value_range|resize(8)", "value_range(-1, 1)|resize(8)"),
        ("onehot(5, key='label', key_res='labels')", "onehot(5)"),
        ("onehot(5, key='label')|copy('label', 'labels')|onehot(5)", None),
        ("onehot(depth=5, inkey='label', outkey='labels')", "onehot(5)"),
        ("inception_box|crop_box", None),
        ("flip_lr(key='image')", "flip_lr"),
    ],
)
def test_arguments_by_their_names(theirs, ours):
    if ours is None:
        run("inception_box|crop_box")
        return
    for name, x in run(theirs, label=3).items():
        np.testing.assert_array_equal(x, run(ours, label=3)[name])


def test_arrays_need_no_decode():
    assert run("resize(8)")["image"].shape == (8, 8, 3)
    np.testing.assert_array_equal(
        run("two_views(8)|flip_lr")["view_from_image"],
        run("decode|two_views(8)|flip_lr")["view_from_image"],
    )
    with pytest.raises(PreprocessError, match="decode the image first"):
        run("resize(8)", image=b"jpeg")


def test_ops_on_other_entries():
    other = RNG.integers(0, 256, (30, 30, 3)).astype(np.uint8)
    example = run("resize(8, inkey='other', outkey='small')|value_range(key='other')", other=other)
    np.testing.assert_array_equal(example["image"], PIXELS)
    np.testing.assert_array_equal(example["small"], run("resize(8)", image=other)["image"])
    np.testing.assert_allclose(example["other"], other / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("method", ["area", "nearest", "bicubic", "lanczos3"])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize_by_the_methods_of_tensorflow(method, antialias):
    expected = tf.image.resize(PIXELS, (9, 7), method, antialias=antialias).numpy()
    expected = np.clip(np.rint(expected), 0, 255)
    call = f"resize((9, 7), method={method!r}, antialias={antialias})"
    np.testing.assert_array_equal(run(call)["image"], expected)


def test_truncated_bytes_are_those_of_v_moe():
    """The released program casts what `tf.image.resize` gives."""
    resized = tf.image.resize(PIXELS, (9, 7))
    image = run("resize((9, 7), truncate=True)")["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, tf.cast(resized, tf.uint8))
    assert (run("resize((9, 7))")["image"] != image).any()


@pytest.mark.parametrize(
    "call",
    [
        "inception_crop(16, 20, 90, truncate=True)",
        "decode_jpeg_and_inception_crop(resize_size=16, truncate=True)",
        "two_views(16, (5, 70), (60, 100), truncate=True)",
        "inception_crop(16, resize_method='area', truncate=True)",
    ],
)
def test_truncated_crops_are_those_of_v_moe(call):
    """The released programs crop, resize, cast and flip, in this order."""
    method = "area" if "area" in call else "bilinear"
    rounded = call.replace(", truncate=True", "")
    for seed in range(6):
        example = run(f"{call}|flip_lr", seed)
        images = example["image"].reshape(-1, 16, 16, 3)
        for image, matrix in zip(images, example["view_from_image"].reshape(-1, 3, 3), strict=True):
            corners = np.linalg.inv(matrix) @ np.array([[0, 0, 1], [16, 16, 1]]).T
            (top, left), (bottom, right) = np.rint(corners.T[:, :2]).astype(int)
            box = PIXELS[top:bottom, min(left, right) : max(left, right)]
            expected = tf.cast(tf.image.resize(box, (16, 16), method), tf.uint8).numpy()
            expected = expected[:, ::-1] if right < left else expected
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, expected)
        other = run(f"{rounded}|flip_lr", seed)
        np.testing.assert_array_equal(other["view_from_image"], example["view_from_image"])
        difference = other["image"].astype(int) - example["image"]
        assert (difference == 1).any() and set(difference.flat) <= {0, 1}


def test_value_range_by_channel():
    image = run("value_range(0, 1, in_min=(0, 10, 20), in_max=(255, 200, 100), clip_values=True)")
    expected = (PIXELS - [0, 10, 20]) / np.subtract([255, 200, 100], [0, 10, 20])
    np.testing.assert_allclose(image["image"], np.clip(expected, 0, 1), atol=1e-6)


def test_onehot_with_other_values():
    row = run("onehot(4, on=0.9, off=0.1)", label=np.array([0, 2]))["labels"]
    np.testing.assert_allclose(row, [0.9, 0.1, 0.9, 0.1], atol=1e-7)
    with pytest.raises(ConfigError, match="multi = False"):
        run("onehot(4, multi=False)", label=1)


def test_entries():
    nested = {"objects": {"label": np.arange(3), "box": {"y": 1}}}
    example = run(
        "flatten|drop('image')|copy('objects/label', 'l')|reshape((3, 1), 'l', 'l')", **nested
    )
    assert set(example) == {"objects/label", "objects/box/y", "l"}
    assert example["l"].shape == (3, 1)
    example = run("concat(('a', 'b'), 'c', 0)|setdefault('d', 7)|setdefault('a', 7)", a=[1], b=[2])
    assert (example["c"].tolist(), example["d"], example["a"]) == ([1, 2], 7, [1])
    assert run("ignore_no_labels('real_label')", real_label=np.array([]))["real_label"].size == 0


def test_choice_takes_the_same_items_of_all_entries():
    a, b = np.arange(10), np.arange(10) * 2
    drawn = [run("choice(3, key=('a', 'b'))", seed, a=a, b=b) for seed in range(200)]
    for example in drawn:
        np.testing.assert_array_equal(example["b"], 2 * example["a"])
        assert (np.diff(example["a"]) > 0).all()
    counts = np.bincount(np.concatenate([x["a"] for x in drawn]), minlength=10)
    assert counts.min() > 30 and counts.sum() == 600
    assert run("choice(inkey='a', outkey='x')", a=a)["x"].shape == ()
    with pytest.raises(PreprocessError, match="choice of 11"):
        run("choice(11, key='a')", a=a)


def test_one_box_and_one_flip_for_several_entries():
    process = "copy('image', 'mask')|inception_box(area=(0.2, 0.5))|randu('fliplr')"
    process += "|crop_box|det_fliplr|crop_box(key='mask')|det_fliplr(key='mask')"
    flips = 0
    for seed in range(20):
        example = run(process, seed)
        np.testing.assert_array_equal(example["image"], example["mask"])
        height, width = example["image"].shape[:2]
        assert 0.15 < height * width / (24 * 40) < 0.55
        # The matrix still leads from the picture to the view.
        row, col = 0.5, 0.5
        back = np.linalg.inv(example["view_from_image"]) @ (row, col, 1)
        source = PIXELS[int(back[0]), int(back[1])]
        np.testing.assert_array_equal(example["image"][0, 0], source)
        flips += example["fliplr"] > 0.5
    assert 3 < flips < 17


def test_gray_is_that_of_tensorflow():
    expected = tf.image.rgb_to_grayscale(PIXELS).numpy()
    for name in ("rgb_to_gray", "rgb_to_grayscale_to_rgb"):
        np.testing.assert_array_equal(run(name)["image"], np.repeat(expected, 3, axis=-1))


def test_jitter_blur_and_cutout():
    np.testing.assert_array_equal(run("color_jitter(0)")["image"], PIXELS)
    views = run("two_views(16)|color_jitter(0.5)")["image"]
    assert views.shape == (2, 16, 16, 3) and views.dtype == np.uint8
    # Hue, saturation and the like of a gray picture leave it gray.
    gray = np.full((8, 8, 3), 100, np.uint8)
    jittered = run("color_jitter(0.5)", image=gray)["image"].astype(int)
    assert np.ptp(jittered, axis=-1).max() <= 1 and (jittered != 100).any()
    assert run("gaussian_blur_image(30)")["image"].std() < PIXELS.std()
    covered = run("cutout(8)", image=np.zeros((32, 32, 3), np.uint8))["image"]
    assert 16 * 3 <= (covered == 128).sum() <= 64 * 3
