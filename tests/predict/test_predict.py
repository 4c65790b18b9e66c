"""A trained model in use: classes, routing and representations of images outside a data set."""

import json
import os
import pathlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_images import huge_png

import vmoe_prc
from vmoe_prc.config import ConfigError
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.predict.__main__ import main
from vmoe_prc.predict.inputs import find_images
from vmoe_prc.predict.labelled import (
    count_trained_on,
    evaluate_labelled,
    format_confusion,
    labels_of,
)


@pytest.fixture(scope="module")
def model(finished):
    return vmoe_prc.open(finished[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine images in folders named like the classes 3 and 7, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(9):
        path = folder / ("3" if i % 2 else "7") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + i, 24, 3), np.uint8)).save(path)
    (folder / "7" / "broken.png").write_bytes(b"no image")
    return folder


def good(photos):
    return [path for path in find_images([str(photos)]) if "broken" not in path]


def test_predictions_do_not_depend_on_the_other_images(model, photos):
    paths = good(photos)
    together = model.predict(paths, top_k=10, batch_size=4)
    alone = [model.predict([path], top_k=10)[0] for path in paths]
    for a, b in zip(together, alone, strict=True):
        assert a.classes == b.classes
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)
        assert sum(a.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(a.probabilities) == sorted(a.probabilities, reverse=True)


def test_paths_bytes_arrays_and_pil_images_are_the_same(model, photos):
    path = good(photos)[0]
    with Image.open(path) as image:
        forms = [path, pathlib.Path(path).read_bytes(), np.asarray(image), image.copy()]
    results = model.predict(forms)
    assert all(result == results[0] for result in results)


def test_classes_are_those_of_the_run(model):
    assert model.classes == tuple(map(str, range(10)))


def test_routing_is_that_of_the_model(model, photos):
    paths = good(photos)
    routings = model.routing(paths, batch_size=4)
    for routing in routings.values():
        tokens = routing.experts.shape[1]
        assert routing.experts.shape[0] == len(paths)
        assert routing.kept.all()  # dropless
        assert (np.diff(routing.gates, axis=-1) <= 1e-6).all()
        assert (routing.experts < model.num_experts).all()
    height, width = model.preprocessing(paths[0]).shape[:2]
    patches = (height // model.patch_size[0]) * (width // model.patch_size[1])
    assert tokens == patches + model.class_token


def test_representations(model, photos):
    found = model.represent(good(photos))
    assert found.shape == (9, found.shape[1])
    assert np.isfinite(found).all()
    assert found.std(axis=0).max() > 0


def test_files_that_are_no_images_are_errors(model, photos):
    with pytest.raises(BadExampleError):
        model.predict([photos / "7" / "broken.png"])
    with pytest.raises(BadExampleError):
        model.predict([photos / "nothing.png"])
    with pytest.raises(BadExampleError, match="60,000x60,000 pixels are more than"):
        model.predict([huge_png()])


@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_the_command_names_and_skips_bad_files(finished, photos, capsys, form):
    arguments = [str(finished[0]), str(photos), "--top_k=3", f"--format={form}"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "broken.png" in err
    assert "1 of 10 images could not be read" in err
    lines = out.splitlines()
    if form == "jsonl":
        rows = [json.loads(line) for line in lines]
        assert [row["image"] for row in rows] == good(photos)
        assert all(len(row["classes"]) == 3 for row in rows)
    elif form == "csv":
        assert lines[0] == "image,class1,probability1,class2,probability2,class3,probability3"
        assert len(lines) == 10
    else:
        assert len(lines) == 9
        assert lines[0].startswith(good(photos)[0])


def test_routing_is_written(finished, photos, tmp_path, capsys):
    paths = good(photos)
    # Options may be between the images.
    arguments = [str(finished[0]), paths[0], f"--routing={tmp_path}", *paths[1:]]
    assert main(arguments) == 0
    table = pd.read_csv(tmp_path / "routing.csv")
    routings = vmoe_prc.open(finished[0]).routing(paths)
    assert len(table) == sum(r.experts.size for r in routings.values())
    block, routing = next(iter(routings.items()))
    rows = table[(table["image"] == paths[2]) & (table["block"] == block)]
    np.testing.assert_array_equal(rows["expert"], routing.experts[2].ravel())
    with Image.open(tmp_path / "routing.png") as picture:
        assert min(picture.size) > 200


def test_evaluation_of_a_labelled_folder(finished, photos, tmp_path, capsys):
    assert main([str(finished[0]), f"--evaluate={photos}", f"--output={tmp_path}"]) == 1
    out, _ = capsys.readouterr()
    classes = pd.read_csv(tmp_path / "classes.csv")
    assert dict(zip(classes["class"], classes["images"], strict=True)) == {3: 4, 7: 5}
    assert pd.read_csv(tmp_path / "confusion.csv")["images"].sum() == 9
    for name in ("confusion", "mistakes"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 200
    assert "accuracy" in out


def test_numbers_of_an_evaluation():
    labels, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    probabilities, classes = np.array([0.9, 0.8, 0.6]), ["cat", "dog"]
    found = evaluate_labelled(["a", "b", "c"], labels, predicted, probabilities, classes)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.classes.to_dict("list")["accuracy"] == [1.0, 0.5]
    assert found.confusion.to_dict("split")["data"] == [
        ["cat", "cat", 1],
        ["dog", "cat", 1],
        ["dog", "dog", 1],
    ]
    assert format_confusion(found, classes).splitlines()[-1].split() == ["dog", "1", "1"]
    assert found.mistakes.to_dict("records") == [
        {"image": "c", "class": "dog", "predicted": "cat", "probability": 0.6}
    ]


def test_confusions_of_many_classes_are_listed():
    labels = np.array([*range(100), 7, 7, 5])
    predicted = np.array([*range(100), 8, 8, 2])
    names = [f"class{i}" for i in range(21_843)]
    paths, probabilities = ["x.jpg"] * len(labels), np.ones(len(labels))
    found = evaluate_labelled(paths, labels, predicted, probabilities, names)
    title, header, *rows = format_confusion(found, names).splitlines()
    assert title == "the most frequent of 2 confusions of 100 classes"
    assert header.split() == ["class", "predicted", "images"]
    assert [row.split() for row in rows] == [["class7", "class8", "2"], ["class5", "class2", "1"]]


def test_images_of_the_training_are_counted(photos):
    trained_on = {"train": {"name": "folder", "manual_dir": str(photos)}}
    files = scan_class_folders(photos).splits
    train, test = ([str(file.path) for file in files[split]] for split in ("train", "test"))
    assert train and test
    assert count_trained_on([*train[:2], *test], trained_on) == 2
    assert count_trained_on(train, {"train": {"name": "digits", "manual_dir": None}}) == 0
    gone = {"train": {"name": "folder", "manual_dir": str(photos / "none")}}
    assert count_trained_on(train, gone) == 0


def test_labels_are_folder_names():
    paths = ["x/test/cat/1.png", "x/dog/sub/2.png"]
    np.testing.assert_array_equal(labels_of(paths, "x", ["cat", "dog"]), [0, 1])
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        labels_of(["x/dogs/3.png"], "x", ["cat", "dog"])


def test_images_are_found(photos, tmp_path, monkeypatch):
    assert len(find_images([str(photos)])) == 10
    assert find_images([f"{photos}/3/*.png"]) == sorted(map(str, photos.glob("3/*.png")))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected an image"):
        find_images([str(tmp_path)])
    with open(os.devnull) as empty, pytest.raises(ConfigError):
        find_images(["-"], empty)


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="holds no configuration"):
        vmoe_prc.open(tmp_path)
