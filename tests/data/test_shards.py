"""Class folders that are written by many processes, and stopped in between."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tiny_images import encode

from vmoe_prc.data import shards
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.data.files import FileRecords
from vmoe_prc.data.jobs import run_jobs
from vmoe_prc.data.preparation import prepare

IMAGES = 60


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(rng.integers(0, 255, (16, 16, 3), np.uint8), "png"))
    (tmp_path / "photos" / "a" / "2.png").write_bytes(b"no image")
    return tmp_path / "photos"


def contents(data_dir):
    """Returns the bytes of all files of the prepared data sets in a directory."""
    paths = [x for x in data_dir.rglob("*") if x.is_file() and not x.name.startswith(".")]
    return {x.relative_to(data_dir): x.read_bytes() for x in paths}


def records_of(info):
    return FileRecords(info, "a split").read(range(info.num_examples))


def test_shards_hold_the_records_in_the_same_order(photos, tmp_path, monkeypatch):
    one = prepare("folder", photos, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    many = prepare("folder", photos, tmp_path / "many", processes=1)
    assert one.info.splits["train"].num_shards == 1 and many.info.splits["train"].num_shards > 5
    assert records_of(one.info.splits["train"]) == records_of(many.info.splits["train"])
    assert one.left_out == many.left_out and [name for name, _ in one.left_out] == ["a/2.png"]


def test_shards_are_those_that_tfds_writes(photos, tmp_path, monkeypatch):
    """And plain TFDS reads them, in the same order."""
    (photos / "a" / "2.png").unlink()
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    ours = prepare("folder", photos, tmp_path / "ours", processes=1)
    folders = scan_class_folders(photos)

    class Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = ours.version

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=ours.info.features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split)}

        def _generate_examples(self, split):
            for x in folders.splits[split]:
                name = f"{x.path.parent.name}/{x.path.name}"
                content = x.path.read_bytes()
                yield name, {"image": content, "label": x.label, "file_name": name}

    opened = tfds.builder_from_directory(ours.data_dir)
    for split in ("train", "test"):
        info = ours.info.splits[split]
        config = tfds.download.DownloadConfig(num_shards=info.num_shards)
        theirs = Folder(data_dir=tmp_path / split)
        theirs.download_and_prepare(download_config=config, file_format="array_record")
        expected = theirs.info.splits[split]
        assert [path.name for path in info.filepaths] == [x.name for x in expected.filepaths]
        assert (info.shard_lengths, info.num_bytes) == (
            expected.shard_lengths,
            expected.num_bytes,
        )
        examples = [
            [
                tf.train.Example.FromString(x)
                for x in FileRecords(y, split).read(range(y.num_examples))
            ]
            for y in (info, expected)
        ]
        assert examples[0] == examples[1]
        read = [x["file_name"] for x in opened.as_data_source(split)]
        assert read == [x.features.feature["file_name"].bytes_list.value[0] for x in examples[1]]


def test_a_stopped_preparation_resumes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    prepare("folder", photos, tmp_path / "whole", processes=1)
    write, made = shards.write_shard, []

    def stopping(shard):
        if len(made) == 4:
            # Half a file of the shard that is being written.
            pathlib.Path(f"{shard.path}.writing").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(shard.path)
        return write(shard)

    monkeypatch.setattr(shards, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", photos, tmp_path / "data", processes=1)
    again = []
    monkeypatch.setattr(shards, "write_shard", lambda x: again.append(x.path) or write(x))
    prepare("folder", photos, tmp_path / "data", processes=1)
    assert len(made) == 4 and again and not set(made) & set(again)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


SCRIPT = """
import sys
from vmoe_prc.runtime.quiet_start import quiet_tensorflow
quiet_tensorflow()
from vmoe_prc.data import shards
from vmoe_prc.data.preparation import prepare
shards.SHARD_BYTES = 5_000
prepare("folder", sys.argv[1], sys.argv[2], processes=2)
"""


@pytest.mark.slow
def test_a_killed_preparation_resumes(photos, tmp_path, monkeypatch):
    """The script has no `if __name__ == "__main__"`."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 5_000)
    prepare("folder", photos, tmp_path / "whole", processes=1)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(script), str(photos), str(tmp_path / "data")]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    process = start()
    while not (notes := sorted((tmp_path / "data").rglob(".unfinished*/*.json"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    times = {path.name: path.stat().st_mtime_ns for path in notes}
    assert times and not list((tmp_path / "data").rglob("dataset_info.json"))
    assert start().wait() == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_an_error_in_another_process_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(run_jobs((1).__floordiv__, [0, 0], processes=2))
    assert sorted(run_jobs(abs, [-1, -2, 3], processes=2)) == [1, 2, 3]
