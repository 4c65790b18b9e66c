"""The matrices say where the pixels went: proven on images with dots at known places."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.data.ops import affine, randaugment, registry, resample
from vmoe_prc.data.ops.image_ops import each_view

SIDE = 96


def dot_image(points, shape=(SIDE, SIDE), radius=3.0):
    """A black image with soft dots centred at continuous (row, col) points."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.zeros(shape)
    for row, col in points:
        image += 255 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * radius**2))
    return np.repeat(np.clip(image, 0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def centroid(image):
    weights = np.asarray(image, np.float64)[..., 0]
    rows, cols = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(rows * weights).sum(), (cols * weights).sum()]) / weights.sum()


def run(process, image, seed=0):
    example = registry.apply(registry.build(process, "process"), {"image": image}, seed)
    return example["image"], example["view_from_image"]


def moved(image, matrix):
    """The image resampled in its own frame."""
    size = image.shape[:2]
    return resample.resample(image, (0, 0, *size), matrix, size)


def transform(matrix, point):
    mapped = matrix @ [*point, 1.0]
    return mapped[:2] / mapped[2]


@pytest.mark.parametrize("case", ["32_8", "224_32", "96_16"])
def test_golden_matrices_of_crops_and_flips(golden, close, case):
    data = golden("correspondence")
    size = int(case.split("_")[0])
    boxes, flipped = data[f"boxes_yxhw_{case}_crop"], data[f"flipped_{case}_crop"]
    for image in range(len(boxes)):
        for view in range(2):
            matrix = affine.crop_and_resize_matrix(boxes[image, view].tolist(), (size, size))
            if flipped[image, view]:
                matrix = affine.flip_matrix(size) @ matrix
            close(matrix, data[f"view_from_image_{case}_crop"][image, view])


@pytest.mark.parametrize(
    "process",
    [
        "resize((120, 80))",
        "resize_small(128)",
        "central_crop(64)",
        "random_crop(80)",
        "inception_crop(96, 70, 100)",
        "inception_crop(64, 70, 100)|flip_lr",
        "resize(128)|central_crop(100)|flip_lr",
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_dot_is_where_the_matrix_says(process, seed):
    point = (50.0, 44.0)
    image = dot_image([point], shape=(SIDE, 110))
    view, matrix = run(f"decode|{process}", image, seed)
    # Bilinear interpolation of a smooth dot is exact to a small part of a pixel.
    np.testing.assert_allclose(centroid(view), transform(matrix, point), atol=0.1)


@pytest.mark.parametrize("name", randaugment.GEOMETRIC)
@pytest.mark.parametrize("level", [-1.0, 0.37, 1.0])
def test_a_dot_is_where_randaugment_moved_it(name, level):
    point = (40.0, 54.0)
    matrix = randaugment.GEOMETRIC[name](level, SIDE, SIDE, 17.0)
    view = moved(dot_image([point]), matrix)
    np.testing.assert_allclose(centroid(view), transform(matrix, point), atol=0.05)


def test_translation_by_whole_pixels_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    matrix = affine.translation_matrix(2.0, -3.0)
    view = moved(image, matrix)
    np.testing.assert_array_equal(view[2:, :-3], image[:-2, 3:])
    expected = np.full((7, 9), 255)
    expected[2:, :-3] = 0
    np.testing.assert_array_equal(resample.uncovered(matrix, (7, 9)), expected)


def test_rotation_by_a_right_angle_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    matrix = affine.rotation_matrix(np.pi / 2, 8.0, 8.0)
    np.testing.assert_array_equal(moved(image, matrix), np.rot90(image, -1))
    assert not resample.uncovered(matrix, (8, 8)).any()


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-2, 7), (31, 0)])
@pytest.mark.parametrize("flip", [False, True])
def test_resizing_and_shifting_is_the_warp_to_rounding(shift, flip, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    box, size = (4, 9, 21, 44), (32, 40)
    matrix = affine.crop_and_resize_matrix(box, size)
    if flip:
        matrix = affine.flip_matrix(size[1]) @ matrix
    matrix = affine.translation_matrix(*map(float, shift)) @ matrix
    fast = resample.resample(image, box, matrix, size).astype(int)
    monkeypatch.setattr(resample, "TOLERANCE", 0)
    difference = np.abs(fast - resample.resample(image, box, matrix, size))
    canvas = affine.translation_matrix(*map(float, shift))
    assert difference[resample.uncovered(canvas, size) == 0].max() <= 1


WAVES = "decode|two_views(96, (30, 100), (30, 100))|flip_lr|randaug(3, 8, 20, variant='corrected')"


def waves(rows, cols, length):
    """A smooth picture, defined everywhere."""
    return 128 + 50 * np.sin(rows / length) + 50 * np.cos((cols + rows / 4) / length)


def waves_image(height, width, length=8):
    values = waves(*(np.mgrid[:height, :width] + 0.5), length).round().astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=-1)


def waves_view(matrix, size, length=8):
    """The waves as a view shows them, without any interpolation."""
    rows, cols = np.mgrid[: size[0], : size[1]] + 0.5
    points = np.stack([rows.ravel(), cols.ravel(), np.ones(rows.size)])
    rows, cols, _ = np.linalg.inv(matrix) @ points
    return waves(rows, cols, length).reshape(size)


@given(st.integers(0, 2**31))
def test_views_show_the_image_where_the_matrix_says(seed):
    """At every pixel, and so at the centre of every patch."""
    with mock.patch.object(randaugment, "OP_NAMES", tuple(randaugment.GEOMETRIC)):
        views, matrices = run(WAVES, waves_image(150, 200), seed)
    for view, matrix in zip(views[..., 0].astype(float), matrices, strict=True):
        shown = view != randaugment.GRAY
        assert shown.mean() > 0.2
        error = np.abs(view - waves_view(matrix, view.shape))[shown]
        # The outermost half pixels of a crop are repeated.
        assert np.quantile(error, 0.97) < 3
        assert error.mean() < 1


def test_resampling_once_is_closer_to_the_truth_than_three_times():
    image, size = waves_image(96, 96, length=3), (96, 96)
    once, thrice = np.eye(3), image
    for name, level in (("rotate", 0.4), ("shear_x", 0.3), ("rotate", -0.3)):
        matrix = randaugment.GEOMETRIC[name](level, *size, 0)
        once, thrice = matrix @ once, moved(thrice, matrix)
    middle = np.s_[24:-24, 24:-24]
    truth = waves_view(once, size, length=3)[middle]
    errors = [np.abs(view[middle][..., 0] - truth).mean() for view in (moved(image, once), thrice)]
    assert errors[0] < 0.6 * errors[1]


def test_flipping_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    seen = set()
    for seed in range(8):
        view, matrix = run("decode|flip_lr", image, seed)
        flipped = matrix[1, 1] < 0
        seen.add(bool(flipped))
        np.testing.assert_array_equal(view, image[:, ::-1] if flipped else image)
        if flipped:
            np.testing.assert_allclose(transform(matrix, (2.5, 0.5)), (2.5, 5.5))
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_two_views_through_crops_flips_and_warps(seed, monkeypatch):
    """The whole chain: a dot of the image is found in both views where they say."""
    monkeypatch.setattr(randaugment, "OP_NAMES", tuple(randaugment.GEOMETRIC))
    point = (60.0, 66.0)
    image = dot_image([point], shape=(128, 128), radius=4.0)
    crops = "two_views(96, (80, 100), (80, 100))|flip_lr"
    process = f"decode|{crops}|randaug(2, 5, 20, 0, 'corrected')|value_range(0, 255)"
    monkeypatch.setattr(randaugment, "GRAY", 0)
    views, matrices = run(process, image, seed)
    assert views.shape == (2, 96, 96, 3)
    assert abs(np.linalg.det(matrices[0])) >= 0.8 * abs(np.linalg.det(matrices[1]))
    for view, matrix in zip(views, matrices, strict=True):
        np.testing.assert_allclose(centroid(view), transform(matrix, point), atol=0.1)
    assert not np.allclose(matrices[0], matrices[1])


def test_photometric_ops_leave_the_matrix_alone(monkeypatch):
    monkeypatch.setattr(randaugment, "OP_NAMES", (*randaugment.PHOTOMETRIC, randaugment.CUTOUT))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    changed = 0
    for seed in range(12):
        view, matrix = run("decode|randaug(2, 7)", image, seed)
        np.testing.assert_array_equal(matrix, np.eye(3))
        changed += not np.array_equal(view, image)
    assert changed > 6


def test_views_draw_their_own_randomness():
    draws = []

    def function(image, rng):
        draws.append(rng.random())
        return image, None

    example = {"image": np.zeros((2, 4, 4, 3)), "view_from_image": np.stack([np.eye(3)] * 2)}
    each_view(function)(example, np.random.default_rng(0))
    assert draws[0] != draws[1]


def test_two_views_of_an_image_that_was_moved_before():
    """Matrices lead back to the image itself, pixels come from what became of it."""
    point = (50.0, 70.0)
    image = dot_image([point], shape=(96, 120))
    views, matrices = run("decode|resize(128)|two_views(96, (80, 90), (80, 90))|flip_lr", image)
    for view, matrix in zip(views, matrices, strict=True):
        np.testing.assert_allclose(centroid(view), transform(matrix, point), atol=0.1)
