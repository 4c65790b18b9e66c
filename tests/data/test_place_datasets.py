"""Data sets on which the place matters: what they show, and that they repeat."""

import gzip

import numpy as np
import PIL.Image
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.data import clutter
from vmoe_prc.data.clutter import FashionScenes, cluttered_scenes
from vmoe_prc.data.datasets.photo_patches import PhotoPatches, draw_patches
from vmoe_prc.data.idx import FILES, read_idx
from vmoe_prc.data.preparation import prepare


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def garments(tmp_path, monkeypatch):
    """Files of 12 training and 4 test images, and scenes of 8, 4 and all of them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("test", 4)):
        arrays[split] = rng.integers(256, size=(count, 28, 28)), np.arange(count) % 10
        for name, array in zip(FILES[split], arrays[split], strict=True):
            write_idx(tmp_path / name, array)
    scenes = {
        "train": FashionScenes(("train", slice(None, 8)), 20, seed=1),
        "validation": FashionScenes(("train", slice(8, None)), 5, seed=3),
        "test": FashionScenes(("test", slice(None)), 6, seed=2),
    }
    monkeypatch.setattr(clutter, "FASHION_SCENES", scenes)
    monkeypatch.setattr("vmoe_prc.data.datasets.cluttered_fashion_mnist.FASHION_SCENES", scenes)
    return tmp_path, arrays


def read(builder, split):
    source = builder.as_data_source(split)
    examples = [source[i] for i in range(len(source))]
    return (np.stack([e[key] for e in examples]) for key in ("image", "label"))


def test_cluttered_fashion_mnist_is_drawn_from_its_files(garments):
    folder, arrays = garments
    builder = prepare("cluttered_fashion_mnist", folder, folder / "out")
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    assert sizes == {"train": 20, "validation": 5, "test": 6}
    images, labels = read(builder, "validation")
    own = arrays["train"][0][8:].astype(np.uint8), arrays["train"][1][8:]
    scenes, classes = cluttered_scenes(*own, count=5, seed=3)
    np.testing.assert_array_equal(images[..., 0], scenes)
    np.testing.assert_array_equal(labels, classes)


def test_files_that_are_missing_or_damaged_are_one_line(garments, tmp_path):
    folder, _ = garments
    with pytest.raises(ConfigError, match="apt-get install dataset-fashion-mnist"):
        prepare("cluttered_fashion_mnist", None, tmp_path / "out")
    path = folder / FILES["train"][0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        prepare("cluttered_fashion_mnist", folder, tmp_path / "out")
    write_idx(path, np.zeros((2, 3)))
    assert read_idx(path).shape == (2, 3)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    with pytest.raises(ValueError, match=r"its shape .* has another number"):
        read_idx(path)


def test_photo_patches_of_training_and_test_share_no_pixel(tmp_path):
    # Each pixel holds its column: red the hundreds, green the rest, and blue the photograph.
    photos = tmp_path / "photos" / "more"
    photos.mkdir(parents=True)
    for i, width in enumerate((300, 250)):
        columns = np.broadcast_to(np.arange(width), (100, width))
        pixels = np.stack([columns // 100, columns % 100, np.full_like(columns, i)], axis=-1)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{i}.png")
    PIL.Image.new("RGB", (150, 150)).save(photos / "narrow.png")
    (photos / "broken.png").write_bytes(b"no image")
    builder = prepare("photo_patches", tmp_path / "photos", tmp_path / "out")
    assert builder.info.features["label"].names == ["more/0.png", "more/1.png"]
    for split, count in (("train", 400), ("test", 100)):
        images, labels = read(builder, split)
        np.testing.assert_array_equal(np.bincount(labels), [count, count])
        np.testing.assert_array_equal(images[:, 0, 0, 2], labels)
        columns = images[..., 0].astype(int) * 100 + images[..., 1]
        border = np.where(labels == 0, 210, 175)[:, None, None]
        assert ((columns < border) == (split == "train")).all()
        assert len(np.unique(columns[:, 0, 0])) > 10
    with pytest.raises(ConfigError, match="fewer than two photographs"):
        prepare("photo_patches", tmp_path / "out", tmp_path / "other")


def test_photo_patches_repeat_and_come_with_scikit_image(tmp_path):
    photo = np.random.default_rng(0).integers(256, size=(100, 300, 3), dtype=np.uint8)
    first, again, other = (draw_patches(photo, "test", (2, i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    builder = PhotoPatches(data_dir=str(tmp_path))
    assert builder.info.features["label"].num_classes == 14
