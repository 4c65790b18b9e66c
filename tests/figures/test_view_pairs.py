"""The routing picture: what it joins and what it states, and that it can be written."""

import re

import jaxtyping
import matplotlib.image
import numpy as np
import pytest
from matplotlib.patches import ConnectionPatch

from vmoe_prc.figures.panels import save_figure
from vmoe_prc.figures.view_pairs import routing_pairs_figure


def example(num_images=3, num_experts=4, class_token=True, channels=3, seed=0):
    """(N, 2, 16, 24, C) images of 4 x 6 patches, two thirds of which are matched."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (num_images, 2, 16, 24, channels)).astype(np.float32)
    tokens = 24 + class_token
    experts = rng.integers(0, num_experts, (num_images, 2, tokens), dtype=np.int32)
    pairs = np.stack(
        [
            np.broadcast_to(np.arange(24), (num_images, 24)),
            rng.integers(0, 24, (num_images, 24)),
        ],
        axis=-1,
    ).astype(np.int32)
    pairs += class_token
    pairs[rng.random((num_images, 24)) < 1 / 3] = -1
    return images, experts, pairs


def lines(figure):
    return [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]


def text(figure):
    return "\n".join(t.get_text() for t in figure.texts)


@pytest.mark.parametrize("num_experts", [4, 8, 9, 32])
@pytest.mark.parametrize("class_token", [True, False])
def test_lines_and_text_tell_the_agreement(num_experts, class_token):
    images, experts, pairs = example(num_experts=num_experts, class_token=class_token)
    experts[:, 1] = np.where(np.arange(experts.shape[-1]) % 2, experts[:, 0], experts[:, 1])
    class_pair = np.zeros((3, 1, 2), np.int32)
    figure = routing_pairs_figure(
        images,
        experts,
        np.concatenate([pairs, class_pair], axis=1) if class_token else pairs,
        4,
        num_experts=num_experts,
        class_token=class_token,
        block="encoderblock_5",
    )
    same = [
        experts[n, 0, a] == experts[n, 1, b]
        for n, row in enumerate(pairs)
        for a, b in row
        if a >= 0
    ]
    styles = [line.get_linestyle() for line in lines(figure)]
    assert len(styles) == len(same)
    assert sum(style in ("-", "solid") for style in styles) == sum(same)
    headline = f"{len(same)} matched patch pairs; {100 * np.mean(same):.1f}% have the same expert"
    assert headline in text(figure)
    assert "encoderblock_5" in text(figure)
    per_row = re.findall(r"(\d+) of (\d+) agree", text(figure))
    assert sum(int(agree) for agree, _ in per_row) == sum(same)


def test_a_line_joins_its_two_patches():
    images, experts, pairs = example(num_images=1)
    pairs[:] = -1
    pairs[0, 3] = (1 + 2 * 6 + 5, 1 + 1 * 6 + 0)  # row 2, column 5 with row 1, column 0
    figure = routing_pairs_figure(images, experts, pairs, 4, num_experts=4)
    (line,) = lines(figure)
    for (x, y), (row, col) in zip((line.xy1, line.xy2), ((2, 5), (1, 0)), strict=True):
        assert x == pytest.approx(4 * col + 2)
        assert 4 * row < y < 4 * row + 4


def test_legend_states_the_load_of_patches():
    images, experts, pairs = example()
    figure = routing_pairs_figure(images, experts, pairs, (4, 4), num_experts=4)
    legend = figure.legends[0]
    load = np.bincount(experts[:, :, 1:].ravel(), minlength=4) / experts[:, :, 1:].size
    stated = {t.get_text() for t in legend.get_texts()}
    assert stated == {f"{e}: {share:.1%}" for e, share in enumerate(load)}


def test_unmatched_patches_are_pale():
    images, experts, pairs = example(num_images=1)
    figure = routing_pairs_figure(images, experts, pairs, 4, num_experts=4)
    shown = figure.axes[2].images[0].get_array()
    saturation = (shown.max(-1) - shown.min(-1)).reshape(4, 4, 6, 4).mean((1, 3)).ravel()
    matched = pairs[0, :, 0] >= 0
    assert saturation[matched].min() > saturation[~matched].max()


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_and_no_pairs(tmp_path, channels):
    images, experts, _ = example(num_images=1, channels=channels)
    pairs = np.full((1, 24, 2), -1, np.int32)
    figure = routing_pairs_figure(images, experts, pairs, 4, num_experts=4, labels=["a label"])
    assert lines(figure) == []
    assert "no matched patch pairs" in text(figure)
    assert figure.axes[0].get_ylabel() == "a label"
    save_figure(figure, tmp_path / "new" / "routing.png")
    picture = matplotlib.image.imread(tmp_path / "new" / "routing.png")
    assert picture.shape[2] == 4 and picture[..., :3].std() > 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["routing.png"]


def test_a_failed_save_leaves_the_old_picture(tmp_path):
    path = tmp_path / "routing.png"
    path.write_bytes(b"old")
    images, experts, pairs = example(num_images=1)
    figure = routing_pairs_figure(images, experts, pairs, 4, num_experts=4)
    figure.axes[0].set_xlabel("$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"


def test_shapes_that_do_not_fit_are_both_named(monkeypatch):
    # Users have no shape checker; the one of the tests would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    images, experts, pairs = example()

    def figure(images=images, experts=experts, pairs=pairs, patch_size=4, **options):
        return routing_pairs_figure(
            images, experts, pairs, patch_size, **({"num_experts": 4} | options)
        )

    cases = [
        (
            {"experts": experts[:, :, 1:]},
            r"\(3, 2, 25\).*\(3, 2, 16, 24, 3\).*\(3, 2, 24\)",
        ),
        ({"pairs": pairs[:2]}, r"\(3, X, 2\).*\(3, 2, 16, 24, 3\).*\(2, 24, 2\)"),
        ({"patch_size": 5}, r"\(5, 5\) does not divide images \(3, 2, 16, 24, 3\)"),
        ({"num_experts": 2}, r"experts must be in \[0, 2\), but are in \[0, 3\]"),
        ({"pairs": pairs + 1}, r"pairs must be in \[-1, 25\)"),
        ({"labels": ["one"]}, "1 labels for 3 images"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            figure(**changed)
