"""Routing maps: what they show of known choices, and what they state."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection, PathCollection

from vmoe_prc.figures.palette import expert_colors
from vmoe_prc.figures.panels import figure_pixels
from vmoe_prc.figures.routing_maps import (
    PatchRouting,
    comparison_figure,
    routing_map_figure,
    sequence_figure,
)


def routing(*shape, k=2, num_experts=4, seed=0):
    """Choices for images of 2 x 3 patches."""
    rng = np.random.default_rng(seed)
    scores = rng.random((*shape, 2, 3, num_experts))
    experts = np.argsort(scores, axis=-1)[..., :k].astype(np.int32)
    return PatchRouting(experts, np.ones(experts.shape, bool), num_experts)


def images(*shape):
    return np.random.default_rng(1).uniform(-1, 1, (*shape, 8, 12, 3)).astype(np.float32)


def text(figure):
    legends = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return "\n".join([t.get_text() for t in figure.texts] + legends)


def crosses(axes):
    marks = [c for c in axes.collections if isinstance(c, PathCollection)]
    return sum(len(c.get_offsets()) for c in marks)


def squares(axes):
    (collection,) = (c for c in axes.collections if isinstance(c, PatchCollection))
    return collection.get_facecolors()[:, :3]


def test_a_map_has_the_colours_of_both_choices():
    choices = routing(2)
    gray = np.zeros((2, 8, 12, 3), np.float32)
    figure = routing_map_figure(gray, {"a": choices, "b": routing(2, seed=5)}, labels=["x", "y"])
    panel = figure.axes[3]
    shown = panel.images[0].get_array()[::4, ::4]  # a pixel a patch
    distance = np.linalg.norm(shown[:, :, None] - expert_colors(4), axis=-1)
    np.testing.assert_array_equal(distance.argmin(-1), choices.first[1])
    np.testing.assert_allclose(squares(panel), expert_colors(4)[choices.experts[1, ..., 1].ravel()])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["x", "y"]
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["image", "a", "b"]
    assert figure_pixels(figure).std() > 0


def test_one_choice_has_no_squares_and_dropped_ones_are_pale():
    choices = routing(1, k=1)
    kept = choices.kept.copy()
    kept[0, 1, 2] = False
    choices = dataclasses.replace(choices, kept=kept)
    figure = routing_map_figure(images(1), {"a": choices})
    assert not any(isinstance(c, PatchCollection) for c in figure.axes[1].collections)
    shown = figure.axes[1].images[0].get_array()
    saturation = (shown.max(-1) - shown.min(-1)).reshape(2, 4, 3, 4).mean((1, 3))
    assert saturation.argmin() == 5 and "expert full" in text(figure)


def test_a_sequence_marks_what_changed():
    steps = routing(2, 3)
    figure = sequence_figure(images(2, 3), {"a": steps}, ["0", "1", "2"], unit="pixels")
    changed = steps.first != steps.first[:, :1]  # (N, L, rows, cols)
    panels = np.array(figure.axes).reshape(2, 2, 3)
    for n in range(2):
        assert [crosses(axes) for axes in panels[n, 1]] == changed[n].sum((1, 2)).tolist()
    assert f"at 2 \N{EN DASH} a: {changed[:, -1].mean():.1%}" in text(figure)


def test_a_comparison_states_the_agreement_of_each_run():
    pairs = np.array([[[0, 0], [1, 2], [-1, -1], [5, 3]]] * 2)
    runs = {"base": routing(2, 2), "prc": routing(2, 2, num_experts=9, seed=3)}
    figure = comparison_figure(images(2, 2), runs, pairs, labels=["x", "y"])
    panels = np.array(figure.axes).reshape(2, 3, 2)
    for i, (name, choices) in enumerate(runs.items()):
        first = choices.first.reshape(2, 2, 6)
        same = np.stack([first[:, 0, a] == first[:, 1, b] for a, b in ((0, 0), (1, 2), (5, 3))])
        assert f"{name}: {same.mean():.1%}" in text(figure)
        assert [crosses(axes) for axes in panels[:, 1 + i, 0]] == (~same).sum(0).tolist()
    assert {"0", "8"} <= set(text(figure).splitlines())


@pytest.mark.parametrize("k", [1, 2])
def test_no_pairs(k):
    pairs = np.full((1, 4, 2), -1)
    figure = comparison_figure(images(1, 2), {"a": routing(1, 2, k=k)}, pairs)
    assert "a: no match" in text(figure)


def test_long_names_stay_in_their_places():
    runs = {f"a-long-name-of-a-run-{'x' * 90}-seed={seed}": routing(2, 2) for seed in range(2)}
    pairs = np.array([[[0, 0], [1, 2]]] * 2)
    labels = ["a class with a long name, too, as many have", "ä" * 100]
    figures = [
        comparison_figure(images(2, 2), runs, pairs, labels=labels, title="y" * 200),
        sequence_figure(images(2, 2), runs, ["0", "1"], unit="pixels"),
        routing_map_figure(images(2), {"block": routing(2)}, labels=labels, title="$a_b$" * 60),
    ]
    for figure in figures:
        assert_apart(figure)
    # Names keep their ends, and the line below the title its own.
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert all(any(f"seed={seed}\n" in title for title in titles) for seed in range(2))
    assert "seed=1: " in text(figures[1])


def assert_apart(figure):
    """All texts are within the figure, and none but the views' is over another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    titles = [axes.title if axes.title.get_text() else axes._left_title for axes in figure.axes]
    labels = [axes.yaxis.label for axes in figure.axes]
    texts = [t for t in [*figure.texts, *titles, *labels] if t.get_text()]
    boxes = [t.get_window_extent(renderer) for t in texts]
    for i, box in enumerate(boxes):
        assert figure.bbox.fully_contains(*box.min) and figure.bbox.fully_contains(*box.max)
        # Above "view 0" there is room for the name of a run, also above "view 1".
        if "view" not in texts[i].get_text():
            assert not any(box.overlaps(other) for other in boxes[:i]), texts[i]
