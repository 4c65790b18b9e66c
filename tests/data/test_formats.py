"""Parquet, WebDataset, lists and arrays, from files as their programs write them."""

import shutil

import fsspec
import pytest
from format_files import FORMATS, NAMES, SIZES, png
from fsspec.registry import known_implementations
from tiny_images import encode, pixels

from vmoe_prc.config import ConfigError
from vmoe_prc.data import pipeline
from vmoe_prc.data.preparation import prepare
from vmoe_prc.data.split import open_split

CASES = [(name, write) for name, writers in FORMATS.items() for write in writers]


def read(dataset, split, **options):
    """Returns pixel values, labels and class names of a split."""
    process = 'decode|resize(8)|value_range(0, 255)|onehot(3)|keep("image", "labels")'
    opened = open_split(dataset(split=split, process=process, batch_size=20, **options))
    [batch] = pipeline.eval_batches(opened)
    rows = sorted(
        (int(x[0, 0, 0]), int(y))
        for x, y, counts in zip(
            batch["image"], batch["labels"].argmax(-1), batch["mask"], strict=True
        )
        if counts
    )
    return rows, opened.class_names


@pytest.fixture
def store():
    """Stands for an object store: a file system of fsspec in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize(("name", "write"), CASES)
def test_formats(tmp_path, dataset, store, name, write, place):
    root = tmp_path / "files"
    root.mkdir()
    write(root)
    directory = str(root)
    if place == "remote":
        store.put(str(root), "/bucket/files", recursive=True)
        directory = "memory://bucket/files"
        shutil.rmtree(root)
    options = {"name": name, "manual_dir": directory, "data_dir": str(tmp_path / "data")}
    for split, size in SIZES.items():
        rows, classes = read(dataset, split, **options)
        assert rows == [(20 * i + (split == "test"), i % 3) for i in range(size)]
        assert classes == (("0", "1", "2") if name == "arrays" else NAMES)


def test_a_remote_file_that_changes_is_prepared_again(tmp_path, store):
    for i in range(6):
        store.pipe(f"/bucket/{'ab'[i % 2]}/{i}.png", png("train", i))
    prepare("folder", "memory://bucket", tmp_path)
    store.pipe("/bucket/a/9.png", png("train", 9))
    store.pipe("/bucket/a/_hidden/.x.png", b"")
    builder = prepare("folder", "memory://bucket/", tmp_path)
    assert sum(info.num_examples for info in builder.info.splits.values()) == 7
    assert dict(builder.left_out).keys() == {"a/_hidden/.x.png"}


@pytest.mark.parametrize(
    ("name", "directory", "message"),
    [
        ("parquet", "nowhere://bucket/x", "nowhere:// is not known to fsspec"),
        ("folder", "lacking://bucket/x", "another package: pip install package_of_lacking"),
        ("webdataset", "memory://nothing", "memory://nothing has no files"),
        ("cifar10", "memory://nothing", "must be a local directory; remote ones are for .*folder"),
    ],
)
def test_remote_directories_that_cannot_be_read(tmp_path, monkeypatch, name, directory, message):
    lacking = {"class": "package_of_lacking.FileSystem", "err": "Install it"}
    monkeypatch.setitem(known_implementations, "lacking", lacking)
    with pytest.raises(ConfigError, match=message) as error:
        prepare(name, directory, tmp_path)
    assert "\n" not in str(error.value)


def test_files_without_splits_are_divided_and_bad_images_left_out(tmp_path, dataset):
    lines = []
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(encode(pixels(i), "png") if i else b"no image")
        lines.append(f"{i}.png,{i % 2}")
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(lines))
    builder = prepare("listing", tmp_path, tmp_path / "data")
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sum(sizes.values()) == 59 and 1 <= sizes["test"] <= 15


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("parquet", "x.parquet", b"PAR1 no", "x.parquet cannot be read"),
        ("webdataset", "x.tar", bytes(100), "x.tar cannot be read"),
        ("listing", "x.csv", b"path,label\nnone.png,a\nnone.png,b", "'none.png' is no file"),
        ("listing", "x.csv", b"file\nnone.png", "line 2 must have one of path"),
        ("listing", "x.jsonl", b'["a"]', "line 1: expected an object"),
        ("listing", "x.jsonl", b"{", "x.jsonl cannot be read"),
        ("arrays", "x.npz", b"PK", "x.npz cannot be read"),
        ("arrays", "x.txt", b"", r"has no file \*.npz"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path, name, file, content, message):
    root = tmp_path / "files"
    root.mkdir()
    (root / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        prepare(name, root, tmp_path / "data")
    assert "\n" not in str(error.value)
