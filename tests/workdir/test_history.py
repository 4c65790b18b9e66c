"""What a work directory keeps of configurations and data, and how a resume compares them."""

import threading

import pytest
from absl import logging
from etils import epath

from vmoe_prc.config import ConfigError
from vmoe_prc.workdir.history import (
    Stretch,
    check_data,
    class_names,
    read_config,
    read_history,
    record_config,
    record_data,
)

FILES = ("config.json", "config_history.json", "data.json")


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def split(*classes, digest="1", count=9):
    classes = list(classes) or None
    return {"name": "folder", "split": "train", "num_examples": count} | {
        "classes": classes,
        "digest": digest,
    }


def test_each_stretch_of_steps_keeps_its_configuration(workdir, caplog):
    assert read_history(workdir) == []
    first, second = {"rate": 0.1, "sizes": (1, 2)}, {"rate": 0.2, "sizes": (1, 2)}
    record_config(first, workdir, 0)
    record_config(first, workdir, 4)  # Resumed, and nothing has changed.
    assert read_history(workdir) == [Stretch(0, {"rate": 0.1, "sizes": [1, 2]})]
    with caplog.at_level(logging.WARNING):
        record_config(second, workdir, 6)
    assert "config.rate was 0.1 in the steps so far, and is now 0.2" in caplog.text
    assert [s.after_step for s in read_history(workdir)] == [0, 6]
    # A start that saved no checkpoint leaves no stretch.
    record_config(first, workdir, 6)
    assert len(read_history(workdir)) == 1
    assert read_config(workdir)["rate"] == 0.1


def test_a_run_from_before_the_history(workdir):
    (workdir / "config.json").write_text('{"rate": 0.1}')
    record_config({"rate": 0.2}, workdir, 3)
    assert [s.config["rate"] for s in read_history(workdir)] == [0.1, 0.2]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"{", b"[]" * 2, b"[" * 100_000, b"3", b"[3]"]
)
def test_a_damaged_file_is_one_line_and_stays(workdir, file, content):
    record_config({"rate": 0.1}, workdir, 0)
    record_data({"train": split("a")}, workdir)
    (workdir / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"--workdir = .*{file}") as error:
        record_config({"rate": 0.2}, workdir, 1)
        check_data({"train": split("a")}, workdir)
    assert len(str(error.value).splitlines()) == 1
    assert (workdir / file).read_bytes() == content


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (("b", "a"), "their order has changed: class 0 was 'a' and is 'b'"),
        (("a", "aaa_b"), "2 then, 2 now; new: 'aaa_b'; missing: 'b'"),
        (("a", "b", "dog"), "2 then, 3 now; new: 'dog'"),
    ],
)
def test_other_classes_are_an_error(workdir, now, message):
    record_data({"train": split("a", "b")}, workdir)
    with pytest.raises(ConfigError, match=f"config.dataset.train.name = 'folder': .*{message}"):
        check_data({"train": split(*now)}, workdir)


def test_other_images_are_a_warning(workdir, caplog):
    record_data({"train": split("a", "b")}, workdir)
    with caplog.at_level(logging.WARNING):
        check_data({"train": split("a", "b")}, workdir)
        # Threads of earlier tests may log, too.
        assert not [x for x in caplog.records if x.thread == threading.get_ident()]
        check_data({"train": split("a", "b", digest="2", count=10), "val": split("a")}, workdir)
    assert "config.dataset.train have changed" in caplog.text
    assert "9 examples then, 10 now" in caplog.text


def test_class_names(workdir):
    assert class_names(workdir) is None
    record_data({"train": split("a", "b"), "test": split("a", "b")}, workdir)
    assert class_names(workdir) == ["a", "b"]
