"""Cluttered scenes: the object is whole and its label right, and seeds repeat them."""

import numpy as np
import pytest

from vmoe_prc.data.clutter import cluttered_scenes

# Image i is bright with value 40 (i + 1) in its middle.
IMAGES = np.zeros((5, 28, 28), np.uint8)
for i in range(5):
    IMAGES[i, 4:24, 4:24] = 40 * (i + 1)
LABELS = np.arange(5)


def test_a_scene_shows_its_object_and_pieces_of_others():
    scenes, labels = cluttered_scenes(IMAGES, LABELS, 50, seed=0)
    assert scenes.shape == (50, 40, 40)
    for scene, label in zip(scenes, labels, strict=True):
        assert (scene >= 40 * (label + 1)).sum() >= 400
        assert (scene > 0).sum() <= 400 + 3 * 64
    assert len(np.unique(labels)) == 5


def test_seeds_repeat_and_differ():
    first, again, other = (cluttered_scenes(IMAGES, LABELS, 4, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_images_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="canvas = 20"):
        cluttered_scenes(IMAGES, LABELS, 1, seed=0, canvas=20)
    with pytest.raises(ValueError, match="piece_size = 21"):
        cluttered_scenes(IMAGES, LABELS, 1, seed=0, piece_size=21)
