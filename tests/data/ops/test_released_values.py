"""Pixels of the released programs: `pixels.npz` holds what TensorFlow computed for them.

Its image has smooth and noisy parts. `OP/MAGNITUDE` is the image after an op of RandAugment, by
PRC's copy of tensorflow/tpu's ops; `area/SIZE` is `area/small` after `resize_area`.
"""

import math

import numpy as np
import pytest
import tensorflow as tf

from vmoe_prc.data.ops import affine, nearest, randaugment, registry
from vmoe_prc.data.ops.bilinear import resize_bilinear
from vmoe_prc.data.ops.nearest import move_nearest
from vmoe_prc.data.ops.photometric import CORRECTED, PHOTOMETRIC


class Always(np.random.Generator):
    """A generator of one number."""

    def __init__(self, number):
        super().__init__(np.random.PCG64(0))
        self.number = number

    def random(self, shape):
        return np.full(shape, self.number)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_ops_of_randaugment(golden, name):
    data = golden("pixels")
    image = data["image"]
    cases = [key for key in data if key.startswith(f"{name}/")]
    assert cases
    for key in cases:
        result = PHOTOMETRIC[name](image, int(key.rpartition("/")[2]) / 10, image)
        np.testing.assert_array_equal(result, data[key], err_msg=key)


def test_resize_small_is_the_mean_of_areas(golden):
    data = golden("pixels")
    small = data["area/small"]
    for size in (5, 12, 16, 24, 30, 60):
        ops = registry.build(f"decode|resize_small({size})", "process")
        resized = registry.apply(ops, {"image": small})["image"]
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, data[f"area/{size}"], atol=2e-3)


def test_the_three_ops_with_errors_exist_without_them():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    for name in ("contrast", "solarize", "posterize"):
        assert CORRECTED[name] is not PHOTOMETRIC[name]
    np.testing.assert_array_equal(PHOTOMETRIC["solarize"](image, 1.0, image), 255 - image)
    np.testing.assert_array_equal(CORRECTED["solarize"](image, 1.0, image), image)
    assert set(PHOTOMETRIC["posterize"](image, 0.0, image).flat) == {0, 128}
    assert (CORRECTED["posterize"](image, 0.0, image) == 0).all()
    # 256 pixels / 256 = 1, and the mean is 127: what is equal to it stays.
    assert CORRECTED["contrast"](image, 1.0, image)[7, 15, 0] == 127
    assert PHOTOMETRIC["contrast"](image, 1.0, image)[7, 15, 0] == int(1 + 1.9 * 126)


@pytest.mark.parametrize(
    ("variant", "number", "changed"),
    [("vmoe", 0.999, True), ("prc", 0.999, False), ("prc", 0.93, True), ("corrected", 0.999, True)],
)
def test_prc_may_choose_the_identity(variant, number, changed):
    image = np.full((32, 32, 3), 50, np.uint8)
    decode, randaug = registry.build(f"decode|randaug(1, 10, variant={variant!r})", "process")
    example = randaug(decode({"image": image}, Always(number)), Always(number))
    result = registry.computed(example["image"])
    assert (result != image).any() == changed
    np.testing.assert_array_equal(example["view_from_image"], np.eye(3))


def released_transforms(level, height, width, pixels):
    """Coefficients of the geometric ops as the released programs give them to TensorFlow."""
    angle = tf.constant(level * 30 * math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    x = ((width - 1) - (cos * (width - 1) - sin * (height - 1))) / 2
    y = ((height - 1) - (sin * (width - 1) + cos * (height - 1))) / 2
    return {
        "rotate": [cos, -sin, x, sin, cos, y, 0.0, 0.0],
        "shear_x": [1.0, level * 0.3, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        "shear_y": [1.0, 0.0, 0.0, level * 0.3, 1.0, 0.0, 0.0, 0.0],
        "translate_x": [1.0, 0.0, pixels, 0.0, 1.0, 0.0, 0.0, 0.0],
        "translate_y": [1.0, 0.0, 0.0, 0.0, 1.0, pixels, 0.0, 0.0],
    }


def released_move(image, transform, border):
    """Adds a channel of ones, moves all, and paints gray where the channel is 0."""
    wrapped = np.concatenate([image, np.ones_like(image[..., :1])], axis=-1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=wrapped[None],
        transforms=[[float(x) for x in transform]],
        output_shape=image.shape[:2],
        fill_value=0.0,
        fill_mode=border,
        interpolation="NEAREST",
    )[0].numpy()
    return np.where(moved[..., 3:] > 0, moved[..., :3], np.uint8(128))


@pytest.mark.parametrize(("variant", "border"), [("vmoe", "CONSTANT"), ("prc", "REFLECT")])
@pytest.mark.parametrize("name", randaugment.GEOMETRIC)
def test_geometric_ops_take_the_nearest_pixel(golden, name, variant, border):
    """Two layers of one op, the second of which moves what the first one made."""
    image = golden("pixels")["image"]
    height, width = image.shape[:2]
    index = randaugment.OP_NAMES.index(name)
    call = f"decode|randaug(2, 10, 7, variant={variant!r})"
    decode, randaug = registry.build(call, "process")
    num_choices = len(randaugment.OP_NAMES) + (variant == "prc")
    # The number also draws the sign: positive below 1/2.
    number = (index + 0.5) / num_choices
    example = randaug(decode({"image": image}, Always(number)), Always(number))
    expected, seen = image, registry.computed(example["image"])
    candidates = []
    for sign in (1, -1):
        transform = released_transforms(sign * 1.0, height, width, sign * 7.0)[name]
        expected = image
        for _ in range(2):
            expected = released_move(expected, transform, border)
        candidates.append((expected != seen).any(axis=-1).mean())
    # The sine of a rotation may differ by a bit, which moves pixels halfway between two others.
    assert min(candidates) <= (0.002 if name == "rotate" else 0)
    assert max(candidates) > 0.2


@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_places_that_are_kept_are_those_of_tensorflow(border, monkeypatch):
    """Random moves of views that are not square, half of them far beyond the edges."""
    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (37, 60, 3), np.uint8)
    rows = rng.normal(np.eye(3)[:2], (0.3, 0.3, 40), (40, 2, 3)).tolist()
    moves = [affine.matrix(*pair) for pair in rows]
    kept = [move_nearest(view, move, border) for move in moves]
    monkeypatch.setattr(nearest, "_MAX_MAPPED", 0)
    for move, seen in zip(moves, kept, strict=True):
        np.testing.assert_array_equal(seen, move_nearest(view, move, border))


def test_truncated_resizing_has_every_bit_of_tensorflow():
    rng = np.random.default_rng(0)
    for case in range(120):
        size = tuple(rng.integers(1, 180, 2).tolist())
        shape = [size, (size[0] * 2, size[1] * 3), rng.integers(1, 400, 2)][case % 3]
        # Every other image has few values, so that many results are whole numbers.
        image = rng.integers(0, 256, (*shape, 3), np.uint8) // (1, 85)[case % 2] * (1, 85)[case % 2]
        image = image if case % 5 else image[..., :1].astype(np.float32)
        expected = tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)
        np.testing.assert_array_equal(resize_bilinear(image, size), expected.numpy()[0])


def test_prc_mirrors_what_v_moe_paints_gray():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, axis=-1)
    move = affine.translation_matrix(0.0, 2.0)
    gray, mirrored = (move_nearest(image, move, border) for border in ("constant", "reflect"))
    np.testing.assert_array_equal(gray[:, 2:], image[:, :-2])
    assert (gray[:, :2] == 128).all()
    np.testing.assert_array_equal(mirrored[:, :2], image[:, 1::-1])


def test_floats_are_cut_to_bytes():
    image = np.full((16, 16, 3), 99.9, np.float32)
    image[0, 0], image[0, 1] = -3.0, 300.0
    op = randaugment.randaug(1, 0)
    # The last op is a cutout, of no pixel at magnitude 0.
    example = op({"image": image, "view_from_image": np.eye(3)}, Always(0.999))
    result = registry.computed(example["image"])
    assert result.dtype == np.uint8
    assert [result[0, 0, 0], result[0, 1, 0], result[5, 5, 0]] == [0, 255, 99]


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="must be one of vmoe, prc, corrected"):
        randaugment.randaug(variant="tf")
