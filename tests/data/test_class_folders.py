"""A user's images in class folders: every layout, and what is left out and told."""

import os

import pytest

from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.data.errors import DatasetError


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(folders, split):
    return [(file.path.name, file.label) for file in folders.splits[split]]


def test_undivided_images_are_split_by_their_names(tmp_path):
    write(tmp_path, *(f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(100)))
    folders = scan_class_folders(tmp_path)
    assert folders.classes == ("cat", "dog")
    train, test = (set(folders.splits[s]) for s in ("train", "test"))
    assert not train & test and len(train | test) == 200 and 5 <= len(test) <= 40
    write(tmp_path, "dog/new.png")
    again = scan_class_folders(tmp_path)
    assert train <= set(again.splits["train"]) and test <= set(again.splits["test"])
    assert again.state != folders.state and again.content != folders.content


def test_small_classes_are_in_both_splits(tmp_path):
    write(tmp_path, "a/1.jpg", "a/2.jpg", *(f"b/{i}.jpg" for i in range(3)), "c/only.jpg")
    folders = scan_class_folders(tmp_path)
    assert folders.counts()["a"] == {"train": 1, "test": 1}
    assert folders.counts()["b"]["test"] >= 1
    assert sum(folders.counts()["c"].values()) == 1
    assert any(line in folders.warnings() for line in ("no test image of c", "no train image of c"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("Training", "Testing"),
        ("train", "valid"),
        ("TRAIN", "Validation"),
    ],
)
def test_usual_names_of_splits(tmp_path, train, test):
    write(tmp_path, f"{train}/b/1.PNG", f"{train}/a/sub/2.jpeg", f"{test}/b/3.jpg")
    folders = scan_class_folders(tmp_path)
    assert folders.classes == ("a", "b")
    assert names(folders, "train") == [("2.jpeg", 0), ("1.PNG", 1)]
    assert names(folders, "test") == [("3.jpg", 1)]
    assert folders.warnings() == ["no test image of a"]


def test_validation_images_beside_test_images_are_a_split(tmp_path):
    write(tmp_path, *(f"{s}/{c}/{s}{c}.jpg" for s in ("train", "val", "test") for c in "ab"))
    folders = scan_class_folders(tmp_path)
    assert {s: [n for n, _ in names(folders, s)] for s in folders.splits} == {
        "train": ["traina.jpg", "trainb.jpg"],
        "validation": ["vala.jpg", "valb.jpg"],
        "test": ["testa.jpg", "testb.jpg"],
    }


def test_a_train_folder_alone_is_divided(tmp_path):
    write(tmp_path, *(f"train/{c}/{i}.jpg" for c in "ab" for i in range(5)))
    counts = scan_class_folders(tmp_path).counts()
    assert all(1 <= by_split["test"] <= 4 for by_split in counts.values())


def test_what_is_left_out_is_told_with_the_reason(tmp_path):
    write(tmp_path, "a/1.webp", "a/2.TIF", "b/3.bmp", "b/4.jpg")
    write(tmp_path, ".ipynb_checkpoints/x.jpg", "__MACOSX/y.jpg", "a/.thumbnails/z.jpg")
    write(tmp_path, "a/notes.txt", "b/5.psd", "readme.md", "empty/readme.md", "b/._4.jpg")
    (tmp_path / "a" / "broken.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    with open(os.fsencode(tmp_path / "b") + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"x")
    folders = scan_class_folders(tmp_path)
    assert folders.classes == ("a", "b")
    files = {file.path.name for split in folders.splits.values() for file in split}
    assert files == {"1.webp", "2.TIF", "3.bmp", "4.jpg"}
    hidden, format_ = "hidden, or a folder of the system", "not of an image format that can be read"
    assert dict(folders.left_out) == {
        ".ipynb_checkpoints": hidden,
        "__MACOSX": hidden,
        "a/.thumbnails": hidden,
        "b/._4.jpg": hidden,
        "a/notes.txt": f"{format_} (.txt)",
        "b/5.psd": f"{format_} (.psd)",
        "empty/readme.md": f"{format_} (.md)",
        "empty": "a folder without images",
        "readme.md": "in no folder of a class",
        "a/broken.jpg": "a broken link",
        "a/pipe.jpg": "no regular file",
        "a/loop": "a link to a folder that it is in",
        "b/caf\\xe9.jpg": "its name is not UTF-8",
    }
    assert "left out, no regular file: a/pipe.jpg" in folders.warnings()


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path, "elsewhere/x/1.jpg", "elsewhere/y/2.jpg", "root/b/3.jpg")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
    folders = scan_class_folders(tmp_path / "root")
    assert sum(folders.counts()["a"].values()) == 2
    assert folders.left_out == ()


def test_a_copy_has_the_same_content_and_another_state(tmp_path):
    for root in ("one", "two"):
        write(tmp_path / root, *(f"{c}/{i}.jpg" for c in "ab" for i in range(3)))
    one, two = (scan_class_folders(tmp_path / root) for root in ("one", "two"))
    assert one.content == two.content
    assert one.state != two.state
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert scan_class_folders(tmp_path / "two").content != one.content


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "but no folder has images"),
        (["a/1.jpg"], "but only a has images"),
        (["all/a/1.jpg", "all/b/1.jpg"], "but only all has images; are its classes in .*all?"),
        (["a/1.jpg", "b/1.psd"], r"can be read \(.psd\): b/1.psd"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/readme.md"], "no image for the split test"),
        (["train/a/1.jpg", "Train/b/1.jpg"], "two folders train"),
    ],
)
def test_directories_that_cannot_be_used(tmp_path, files, message):
    write(tmp_path, *files)
    with pytest.raises(DatasetError, match=message) as error:
        scan_class_folders(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DatasetError, match=r"caf\\xe9 is not UTF-8"):
        scan_class_folders(tmp_path)


def test_a_missing_directory(tmp_path):
    with pytest.raises(DatasetError, match="is not a directory"):
        scan_class_folders(tmp_path / "no")
