"""Expert colours: distinct, for colour-blind readers too."""

import numpy as np
import pytest

from vmoe_prc.figures.palette import color_distance, expert_colors, lab_from_rgb


def deuteranope(rgb):
    """Viénot, Brettel and Mollon (1999); not the simulation that chose the colours."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    r, g, b = linear.T
    seen = np.stack(
        [0.29275 * r + 0.70725 * g, 0.29275 * r + 0.70725 * g, -0.02234 * (r - g) + b], -1
    ).clip(0, 1)
    return np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)


def least_distance(rgb):
    lab = lab_from_rgb(rgb)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return distance[~np.eye(len(rgb), dtype=bool)].min()


@pytest.mark.parametrize(("num_experts", "least"), [(2, 15), (4, 15), (8, 15), (16, 14), (32, 8)])
def test_colors_are_distinct(num_experts, least):
    colors = expert_colors(num_experts)
    assert colors.shape == (num_experts, 3)
    assert colors.min() >= 0 and colors.max() <= 1
    assert least_distance(colors) > least
    assert least_distance(deuteranope(colors)) > least


def test_colors_stay_as_experts_are_added():
    np.testing.assert_array_equal(expert_colors(32)[:12], expert_colors(12))


def test_no_color_is_gray():
    _, a, b = lab_from_rgb(expert_colors(32)).T
    assert np.hypot(a, b).min() > 15


def test_lab_of_known_colors():
    lab = lab_from_rgb(np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.02)


def test_red_and_green_are_near_for_the_color_blind():
    red, green = np.array([[0.6, 0.5, 0.0]]), np.array([[0.35, 0.57, 0.0]])
    normal = np.linalg.norm(lab_from_rgb(red) - lab_from_rgb(green))
    assert color_distance(red, green)[0, 0] < normal / 2
