"""Opening data sets: once for all splits, by several processes, and when files are damaged."""

import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import DATASETS
from vmoe_prc.data import builders
from vmoe_prc.data.datasets.digits import Digits
from vmoe_prc.data.split import open_split, open_splits
from vmoe_prc.errors import RunError

PREPARE = """
import sys, ml_collections
from vmoe_prc.runtime.quiet_start import quiet_tensorflow
quiet_tensorflow()
from vmoe_prc.data.builders import open_builder
data_dir, manual_dir = sys.argv[1:]
for name in ("digits", "folder"):
    section = {"name": name, "data_dir": data_dir, "manual_dir": manual_dir}
    builder = open_builder(ml_collections.ConfigDict(section))
    print(sum(split.num_examples for split in builder.info.splits.values()))
"""


@pytest.mark.slow
def test_processes_that_start_together_prepare_once(tmp_path, images):
    command = [sys.executable, "-c", PREPARE, str(tmp_path), str(images)]
    programs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    results = [program.communicate() for program in programs]
    assert [program.returncode for program in programs] == [0] * 4, results
    assert [out.split() for out, _ in results] == [["1797", "8"]] * 4


@pytest.fixture
def images(tmp_path):
    """Two classes of four images."""
    from tiny_images import png

    root = tmp_path / "images"
    for i in range(8):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return root


def test_splits_of_one_data_set_share_its_builder(dataset, monkeypatch):
    opened = []
    real = builders.open_builder

    def counted(*args):
        opened.append(args)
        return real(*args)

    monkeypatch.setattr("vmoe_prc.data.split.open_builder", counted)
    splits = open_splits({"train": dataset(), "test": dataset(split="test"), "x": dataset()})
    assert len(opened) == 1
    assert [split.num_examples for split in splits.values()] == [23, 7, 23]
    assert len({split.digest for split in splits.values()}) == 1


def test_classes_and_digest(dataset, tmp_path, images):
    split = open_split(dataset())
    assert split.class_names == tuple(map(str, range(30)))
    assert split.value_range == (-1, 1)
    options = {"name": "folder", "manual_dir": str(images), "data_dir": str(tmp_path / "data")}
    process = 'decode|resize(4)|value_range(0, 1)|onehot(2)|keep("image", "labels")'
    first = open_split(dataset(**options, process=process))
    assert first.class_names == ("a", "b")
    assert first.description()["classes"] == ["a", "b"]
    copy = shutil.copytree(images, tmp_path / "copy")
    copied = open_split(dataset(**options | {"manual_dir": str(copy)}, process=process))
    assert copied.digest == first.digest != split.digest
    (copy / "b").rename(copy / "aa")
    renamed = open_split(dataset(**options | {"manual_dir": str(copy)}, process=process))
    assert renamed.class_names == ("a", "aa")
    assert renamed.digest != first.digest


@pytest.mark.slow
def test_a_data_set_registered_outside_of_the_package(dataset, tmp_path):
    @DATASETS.register("evens")
    class Evens(Digits):
        def _generate_examples(self, images, labels):
            for key, example in super()._generate_examples(images, labels):
                if example["label"] % 2 == 0:
                    yield key, example

    process = 'decode|resize(4)|value_range(0, 1)|onehot(10)|keep("image", "labels")'
    split = open_split(dataset(name="evens", data_dir=str(tmp_path), process=process))
    assert 600 < split.num_examples < 800


def damage(path: pathlib.Path, kind: str):
    text = path.read_text()
    if kind == "missing":
        path.unlink()
    elif kind == "torn":
        path.write_text(text[: len(text) // 2])
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe\x00binary")
    elif kind == "list":
        path.write_text("[1, 2]")
    elif kind == "version":
        path.write_text(text.replace('"1.0.0"', '"7.0.0"'))
    elif kind == "negative":
        path.write_text(text.replace('"shardLengths": [', '"shardLengths": ["-6", '))
    elif kind == "huge":
        path.write_text(text.replace('"shardLengths": [', '"shardLengths": ["1000000000000", '))
    elif kind == "empty":
        path.write_text("")
    elif kind == "template":
        path.write_text(text.replace("{FILEFORMAT}", "{FILEVORMAT}"))


@pytest.mark.parametrize(
    "kind",
    ["missing", "torn", "no text", "list", "version", "negative", "huge", "empty", "template"],
)
@pytest.mark.parametrize("name", ["tiny_jpegs", "digits"])
def test_a_damaged_dataset_info_is_one_line(dataset, data_dir, digits_dir, tmp_path, name, kind):
    process = 'decode|resize(4)|value_range(0, 1)|onehot(30)|keep("image", "labels")'
    options = {"name": name, "data_dir": str(tmp_path / "data"), "process": process}
    if name == "digits":
        open_split(dataset(**options | {"data_dir": digits_dir}))
    source = digits_dir if name == "digits" else data_dir
    shutil.copytree(source, tmp_path / "data")
    [path] = (tmp_path / "data" / name).glob("**/dataset_info.json")
    damage(path, kind)
    with pytest.raises(ConfigError) as error:
        open_split(dataset(**options))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or "prepared" in str(error.value)


def test_a_directory_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    options = {"name": "digits", "data_dir": str(tmp_path / "file" / "data")}
    with pytest.raises(ConfigError, match=r"x\.data_dir = .*file/data'") as error:
        open_split(dataset(**options), "x")
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line(dataset, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"digits/1\.0\.0 cannot be written: .*File too large"):
            open_split(dataset(name="digits", data_dir=str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_split(dataset(name="digits", data_dir=str(tmp_path))).num_examples > 1_000
