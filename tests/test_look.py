"""A look at the data before training: counts, what is left out, views and matched patches."""

import matplotlib.image
import numpy as np
import pytest
from tiny_images import encode, pixels, png

from vmoe_prc.config import complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.data.split import open_splits
from vmoe_prc.figures.matched_views import matched_views_figure
from vmoe_prc.look import bad_images, main


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Command line for photos of two classes, of which one file is text and one no picture."""
    root = tmp_path_factory.mktemp("look")
    for name in ("cat", "ölçü"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(4):
            image = encode(pixels(i, 40, 48), "jpeg")
            (root / "photos" / name / f"{i}.JPG").write_bytes(image)
    (root / "photos" / "cat" / "notes.txt").write_text("x")
    (root / "photos" / "cat" / "broken.jpg").write_bytes(b"x")
    (root / "photos" / "cat" / "flat.png").write_bytes(png(0, height=1, width=9000))
    recipe = f"configs/photos_prc.py:dir={root / 'photos'},size=16"
    fields = [
        f"--config.dataset.{x}.data_dir={root / 'data'}" for x in ("train", "test", "test_pairs")
    ]
    return [f"--config={recipe}", *fields]


def test_counts_and_pictures(arguments, tmp_path, capsys):
    assert main([*arguments, f"--output={tmp_path / 'two.png'}", "--images=2", "--check"]) == 0
    printed = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    assert table["class"] == ["train", "test"]
    counts = np.array([table["cat"], table["ölçü"]], int)
    assert (
        counts.sum(axis=1).tolist() == [5, 4]
        and table["all"] == counts.sum(axis=0).astype(str).tolist()
    )
    assert "(.txt): cat/notes.txt" in printed and "cat/broken.jpg" in printed
    assert "two views of each image: test_pairs, train" in printed
    single = (
        'decode|inception_crop(16, 50, 100)|value_range(-1, 1)|onehot(2)|keep("image", "labels")'
    )
    one = [f"--config.dataset.train.process={single}", f"--output={tmp_path / 'one.png'}"]
    assert main([*arguments, *one]) == 0
    two, one = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("two", "one"))
    assert two.std() > 0.05 and one.std() > 0.05 and two.shape != one.shape


def test_check_names_images_that_the_preprocessing_refuses(arguments, monkeypatch):
    config = complete(read_config_file(arguments[0].partition("=")[2], "--config"))
    fields = {"data_dir": arguments[1].rpartition("=")[2]}
    config = complete(override(config, {"dataset": {"train": fields}}))
    split = open_splits({"train": config.dataset.train})["train"]
    assert bad_images(split) == []
    read = split.records.read
    monkeypatch.setattr(
        split.records, "read", lambda numbers: [b"" if n == 1 else read([n])[0] for n in numbers]
    )
    [line] = bad_images(split)
    assert line.endswith("damaged") and "record 1 of" in line


def test_matched_patches_have_the_same_colour():
    views = np.zeros((1, 2, 8, 8, 3), np.float32)
    pairs = np.array([[[0, 3], [1, 2], [-1, -1], [3, 0]]])
    figure = matched_views_figure(views, pairs, (4, 4), ["cat"])
    first, second = (axes.images[0].get_array() for axes in figure.axes[2:])
    for a, b in ((0, 3), (1, 2), (3, 0)):
        row, col = np.divmod([a, b], 2) * np.array(4)
        np.testing.assert_array_equal(first[row[0], col[0]], second[row[1], col[1]])
    assert not np.array_equal(first[0, 0], first[0, 4])
