"""Pixels of the released programs: `pixels.npz` holds what TensorFlow computed for them.

Its image has smooth and noisy parts. `OP/MAGNITUDE` is the image after an op of RandAugment, by
PRC's copy of tensorflow/tpu's ops; `area/SIZE` is `area/small` after `resize_area`.
"""

import numpy as np
import pytest

from vmoe_prc.data.ops import randaugment, registry
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
