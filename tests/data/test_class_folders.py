"""A user's images in class folders."""

import pytest

from vmoe_prc.data.class_folders import scan_class_folders


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_undivided_images_are_split_by_their_names(tmp_path):
    write(tmp_path, *(f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(100)))
    folders = scan_class_folders(tmp_path)
    assert folders.classes == ("cat", "dog")
    train, test = (set(folders.splits[s]) for s in ("train", "test"))
    assert not train & test and len(train | test) == 200 and 5 <= len(test) <= 40
    write(tmp_path, "dog/new.png")
    again = scan_class_folders(tmp_path)
    assert train <= set(again.splits["train"]) and test <= set(again.splits["test"])
    assert again.digest != folders.digest


def test_splits_of_the_user(tmp_path):
    write(tmp_path, "train/b/1.PNG", "train/a/sub/2.jpeg", "val/b/3.jpg", "train/a/notes.txt")
    folders = scan_class_folders(tmp_path)
    assert [(p.name, label) for p, label in folders.splits["train"]] == [
        ("2.jpeg", 0),
        ("1.PNG", 1),
    ]
    assert [(p.name, label) for p, label in folders.splits["test"]] == [("3.jpg", 1)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "two classes"),
        (["a/1.jpg"], "two classes"),
        (["train/a/1.jpg", "train/b/1.jpg"], "none named test"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/readme.md"], "no image for the split test"),
    ],
)
def test_directories_that_cannot_be_used(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        scan_class_folders(tmp_path)


def test_a_missing_directory(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        scan_class_folders(tmp_path / "no")
