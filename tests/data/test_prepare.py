"""Data sets prepared by TFDS's own builders from small files in their official formats."""

import io
import json
import os
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from tiny_images import encode, huge_png

from vmoe_prc.config import ConfigError
from vmoe_prc.data import pipeline
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.preparation import prepare
from vmoe_prc.data.resized import resize_dataset, shrink
from vmoe_prc.data.split import open_split

RNG = np.random.default_rng(0)


def encoded(kind, size=(24, 30)):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def write_tar(file, members, mode="w"):
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def class_archives():
    for synset in ("n15075141", "n01440764"):
        images = {f"{synset}_{i}.JPEG": encoded("JPEG") for i in range(8)}
        yield f"{synset}.tar", write_tar(io.BytesIO(), images).getvalue()


def write_imagenet(folder):
    with (folder / "ILSVRC2012_img_train.tar").open("wb") as file:
        write_tar(file, dict(class_archives()))
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 9)]
    with (folder / "ILSVRC2012_img_val.tar").open("wb") as file:
        write_tar(file, {name: encoded("JPEG") for name in names})


def write_imagenet21k(folder):
    with (folder / "fall11_whole.tar").open("wb") as file:
        write_tar(file, dict(class_archives()))


def write_imagenet21k_unpacked(folder):
    for name, content in class_archives():
        (folder / name).write_bytes(content)


def write_cifar10(folder):
    def records(count):
        return b"".join(bytes([i % 10]) + RNG.bytes(3072) for i in range(count))

    members = {f"cifar-10-batches-bin/data_batch_{i}.bin": records(10) for i in range(1, 6)}
    members["cifar-10-batches-bin/test_batch.bin"] = records(16)
    members["cifar-10-batches-bin/batches.meta.txt"] = b"\n".join(b"class%d" % i for i in range(10))
    with (folder / "cifar-10-binary.tar.gz").open("wb") as file:
        write_tar(file, members, "w:gz")


def write_cifar100(folder):
    def records(count):
        return b"".join(bytes([i % 20, i % 100]) + RNG.bytes(3072) for i in range(count))

    def names(count):
        return b"\n".join(b"class%d" % i for i in range(count))

    members = {"train.bin": records(120), "test.bin": records(16)}
    members |= {"coarse_label_names.txt": names(20), "fine_label_names.txt": names(100)}
    with (folder / "cifar-100-binary.tar.gz").open("wb") as file:
        write_tar(file, {f"cifar-100-binary/{n}": x for n, x in members.items()}, "w:gz")


def write_flowers(folder):
    members = {f"jpg/image_{i:05d}.jpg": encoded("JPEG") for i in range(1, 33)}
    with (folder / "102flowers.tgz").open("wb") as file:
        write_tar(file, members, "w:gz")
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 33)[None]})
    ids = {"trnid": range(1, 9), "valid": range(9, 17), "tstid": range(17, 33)}
    savemat(folder / "setid.mat", {name: np.array(x)[None] for name, x in ids.items()})


def write_pets(folder):
    breeds = ["Abyssinian", "beagle", "yorkshire_terrier"]
    names = [(f"{breed}_{i}", breed) for breed in breeds for i in range(1, 7)]
    with (folder / "images.tar.gz").open("wb") as file:
        write_tar(file, {f"images/{n}.jpg": encoded("JPEG") for n, _ in names}, "w:gz")
    trimap = io.BytesIO()
    Image.fromarray(RNG.integers(1, 4, (24, 30), np.uint8)).save(trimap, "PNG")
    lines = [f"{n} {breeds.index(b) + 1} {1 if b[0].isupper() else 2} 1\n" for n, b in names]
    members = {f"annotations/trimaps/{n}.png": trimap.getvalue() for n, _ in names}
    members["annotations/trainval.txt"] = "".join(lines[::2]).encode()
    members["annotations/test.txt"] = "".join(lines[1::2]).encode()
    with (folder / "annotations.tar.gz").open("wb") as file:
        write_tar(file, members, "w:gz")


@pytest.mark.parametrize(
    ("name", "write", "sizes"),
    [
        ("imagenet2012", write_imagenet, {"train": 16, "validation": 8}),
        ("imagenet21k", write_imagenet21k, {"full": 16}),
        ("imagenet21k", write_imagenet21k_unpacked, {"full": 16}),
        ("cifar10", write_cifar10, {"train": 50, "test": 16}),
        ("cifar100", write_cifar100, {"train": 120, "test": 16}),
        (
            "oxford_flowers102",
            write_flowers,
            {"train": 8, "validation": 8, "test": 16},
        ),
        ("oxford_iiit_pet", write_pets, {"train": 9, "test": 9}),
    ],
)
def test_official_files(tmp_path, dataset, name, write, sizes):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    builder = prepare(name, tmp_path / "files", tmp_path / "data", partial=True)
    assert builder.info.file_format.value == "array_record"
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == sizes
    config = dataset(
        name=name,
        data_dir=str(tmp_path / "data"),
        split=next(iter(sizes)),
        process='decode|resize(16)|value_range(-1, 1)|onehot(21843, inkey="label", outkey="labels")'
        '|keep("image", "labels")',
        batch_size=8,
    )
    batch = next(pipeline.train_batches(open_split(config), seed=0))
    assert batch["image"].shape == (8, 16, 16, 3)


def test_labels_of_imagenet21k_are_the_ranks_of_the_synsets(tmp_path):
    write_imagenet21k(tmp_path)
    builder = prepare("imagenet21k", tmp_path, tmp_path / "data", partial=True)
    examples = builder.as_data_source("full")
    labels = {x["file_name"].decode().partition("_")[0]: int(x["label"]) for x in examples}
    assert labels == {"n01440764": 0, "n15075141": 1}


@pytest.mark.parametrize(
    ("name", "write", "damaged"),
    [
        ("imagenet2012", write_imagenet, "ILSVRC2012_img_train.tar"),
        ("imagenet21k", write_imagenet21k, "fall11_whole.tar"),
        ("cifar10", write_cifar10, "cifar-10-binary.tar.gz"),
    ],
)
def test_a_truncated_file_is_one_line(tmp_path, name, write, damaged):
    write(tmp_path)
    whole = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=damaged) as caught:
        prepare(name, tmp_path, tmp_path / "data", partial=True)
    assert "\n" not in str(caught.value)


def rewrite_validation(folder, names):
    with (folder / "ILSVRC2012_img_val.tar").open("wb") as file:
        write_tar(file, {name: encoded("JPEG") for name in names})


VALIDATION = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 9)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: rewrite_validation(folder, VALIDATION[:2] + VALIDATION[3:]),
            "has ILSVRC2012_val_00000004.JPEG where ILSVRC2012_val_00000003.JPEG is expected",
        ),
        (
            lambda folder: rewrite_validation(folder, ["a.JPEG", *VALIDATION]),
            "has a.JPEG where ILSVRC2012_val_00000009.JPEG is expected",
        ),
        (lambda folder: None, "has 8 images, not 50,000; --partial takes what is there"),
        (lambda folder: os.mkfifo(folder / "pipe.tar"), "pipe.tar is no regular file"),
    ],
)
def test_files_of_imagenet_that_are_not_the_official_ones(tmp_path, damage, message):
    write_imagenet(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        prepare("imagenet2012", tmp_path, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "imagenet2012").exists()


def cut_batches(folder):
    members = {"cifar-10-batches-bin/data_batch_1.bin": RNG.bytes(3073 * 2 + 100)}
    with (folder / "cifar-10-binary.tar.gz").open("wb") as file:
        write_tar(file, members, "w:gz")


def labels_out_of_range(folder):
    write_flowers(folder)
    savemat(folder / "imagelabels.mat", {"labels": np.full((1, 32), 500)})


@pytest.mark.parametrize(
    ("name", "write"), [("cifar10", cut_batches), ("oxford_flowers102", labels_out_of_range)]
)
def test_contents_that_tfds_cannot_use_are_one_line(tmp_path, name, write):
    write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(name, tmp_path, tmp_path / "data", partial=True)
    assert "\n" not in str(caught.value)


def test_short_data_are_refused_unless_a_part_will_do(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(ConfigError, match="train has 50 examples, not 50,000; --partial"):
        prepare("cifar10", tmp_path, tmp_path / "data")
    assert prepare("cifar10", tmp_path, tmp_path / "data", partial=True).is_prepared()


@pytest.mark.parametrize("write", [write_imagenet21k, write_imagenet21k_unpacked])
@pytest.mark.parametrize("damage", ["cut", "header"])
def test_archives_of_imagenet21k_that_tarfile_would_take(tmp_path, write, damage):
    """Cut between two files, and with a damaged header: reading them is no error."""
    write(tmp_path)
    path = min(tmp_path.glob("*.tar"))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1].offset
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:last]
    else:
        content[last + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path.name} is cut or damaged"):
        prepare("imagenet21k", tmp_path, tmp_path / "data", partial=True)


def test_missing_classes_of_imagenet21k_are_refused(tmp_path):
    write_imagenet21k(tmp_path)
    with pytest.raises(ConfigError, match="2 classes of 21,841 are there; --partial takes them"):
        prepare("imagenet21k", tmp_path, tmp_path / "data")


@pytest.mark.slow
def test_the_command_on_files_that_are_not_there(tmp_path):
    command = [sys.executable, "-m", "vmoe_prc.data.prepare", "imagenet2012"]
    command += [f"--from={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "ILSVRC2012_img_train.tar" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("cifar01", ".", "did you mean"),
        ("cifar10", "missing", "is not a directory"),
        ("folder", None, "needs the directory"),
        ("folder", ".", "two classes or more"),
    ],
)
def test_errors(tmp_path, name, files, message):
    with pytest.raises(ConfigError, match=message):
        prepare(name, files and tmp_path / files, tmp_path / "data")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                kind = ("PNG", "JPEG")[i % 2]
                path = tmp_path / split / name / f"{i}.{kind.lower()}"
                path.write_bytes(encoded(kind))
    whole = (tmp_path / "train" / "cat" / "1.jpeg").read_bytes()
    (tmp_path / "train" / "cat" / "1.jpeg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"no image at all")
    (tmp_path / "test" / "dog" / "bomb.png").write_bytes(huge_png())
    return tmp_path


def test_corrupt_files_of_a_folder_are_left_out_and_named(folder, tmp_path):
    builder = prepare("folder", folder, tmp_path / "data")
    sizes = {s: i.num_examples for s, i in builder.info.splits.items()}
    assert sizes == {"train": 11, "test": 7}
    left_out = dict(builder.left_out)
    left_out.pop("data", None)  # the directory of the prepared data, beside the splits
    assert left_out.keys() == {"train/cat/1.jpeg", "test/dog/0.png", "test/dog/bomb.png"}
    assert all(reason.startswith("unreadable (") for reason in left_out.values())
    assert "60,000x60,000 pixels" in left_out["test/dog/bomb.png"]


def test_a_split_without_a_readable_image_is_one_line(folder, tmp_path):
    for path in (folder / "test").glob("*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="no image of the split test can be read: left out") as e:
        prepare("folder", folder, tmp_path / "data")
    assert "\n" not in str(e.value)


def test_a_folder_that_changes_is_prepared_again(folder, tmp_path):
    prepare("folder", folder, tmp_path / "data")
    (folder / "train" / "cat" / "new.png").write_bytes(encoded("PNG"))
    builder = prepare("folder", folder, tmp_path / "data")
    assert builder.info.splits["train"].num_examples == 12
    labels = [int(x["label"]) for x in builder.as_data_source("train")]
    assert sorted(labels) == [0] * 6 + [1] * 6


def test_a_copy_with_smaller_images(tmp_path, dataset):
    rng = np.random.default_rng(0)
    for i in range(12):
        size = (60, 90) if i < 6 else (20, 30)
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(rng.integers(0, 255, (3, 4, 3), np.uint8)).resize(size[::-1])
        smooth.save(path)
    builder = prepare("folder", tmp_path / "images", tmp_path / "data")
    copy = resize_dataset(builder, 30)
    assert copy.name == f"folder_{builder.builder_config.name}_short30"
    assert {s: i.num_examples for s, i in copy.info.splits.items()} == {
        s: i.num_examples for s, i in builder.info.splits.items()
    }
    shapes = [x["image"].shape for x in copy.as_data_source("train")]
    assert set(shapes) == {(30, 45, 3), (20, 30, 3)}
    process = 'decode|resize(8)|value_range(0, 255)|onehot(2)|keep("image", "labels")'
    options = {"data_dir": str(tmp_path / "data"), "process": process, "batch_size": 12}
    small = open_split(dataset(name=copy.name, **options))
    whole = open_split(dataset(name="folder", manual_dir=str(tmp_path / "images"), **options))
    assert small.class_names == whole.class_names == ("a", "b")
    [a], [b] = pipeline.eval_batches(small), pipeline.eval_batches(whole)
    np.testing.assert_array_equal(a["labels"], b["labels"])
    assert np.abs(a["image"].astype(int) - b["image"]).mean() < 4
    assert resize_dataset(builder, 30).data_path == copy.data_path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_smaller_images_are_decoded_as_the_original_ones(mode, orientation):
    channels = len(mode)
    corners = np.random.default_rng(0).integers(0, 255, (3, 4, channels), np.uint8)
    if mode == "RGBA":
        corners[..., 3] = 0, 255, 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(corners).resize((160, 120), Image.Resampling.BICUBIC)
    image = encode(picture, "png" if mode == "RGBA" else "jpeg", exif=exif)
    small = shrink(image, 60, 95)
    for options in ({}, {"orient": True, "background": 255}):
        expected, found = decode_image(image, **options), decode_image(small, **options)
        assert min(found.shape[:2]) == 60
        upright = orientation < 5 or not options
        assert found.shape == ((60, 80, 3) if upright else (80, 60, 3))
        if mode == "RGB" or options:  # colours of transparent pixels have no meaning
            reduced = cv2.resize(expected, found.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(found.astype(int) - reduced).mean() < 3


@pytest.mark.slow
def test_the_folder_recipe_trains(folder, three_steps, caplog, tmp_path):
    batch_sizes = {"train": 4, "test": 8, "test_pairs": 4}
    changes = {f"dataset.{split}.batch_size": size for split, size in batch_sizes.items()}
    changes |= {f"dataset.{split}.data_dir": tmp_path / "data" for split in batch_sizes}
    model = {"hidden_size": 32, "encoder.mlp_dim": 32, "encoder.num_layers": 2}
    changes |= {f"model.{name}": value for name, value in model.items()}
    changes["model.encoder.moe.layers"] = "(1,)"
    workdir = three_steps(f"configs/folder_prc.py:dir={folder},size=64", **changes)
    assert "left out, unreadable" in caplog.text
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 3
