"""The command lines of docs/DATA.md, pasted from the page, on real files of each format."""

import contextlib
import io
import pathlib
import re
import shlex

import pytest
import tensorflow_datasets as tfds
from format_files import FORMATS, write_archives
from tensorflow_datasets.core import constants
from tiny_images import pixels

from vmoe_prc.config import complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.data import pipeline, prepare
from vmoe_prc.data.split import open_splits
from vmoe_prc.runtime import logs

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "DATA.md"
SECTION = PAGE.read_text().partition("### Other formats")[2]
PAIRS = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)[0].strip().split("\n\n")
# What stands for a directory of the user in the lines.
PLACES = {
    "PHOTOS": "folder",
    "PARQUET": "parquet",
    "SHARDS": "webdataset",
    "LISTS": "listing",
    "ARRAYS": "arrays",
}


def write_by_tfds(data_dir):
    """Writes TFRecord, TFDS's default."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    examples = [(i, {"image": pixels(i), "label": i % 2}) for i in range(12)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made_elsewhere",
        version="1.0.0",
        features=features,
        split_datasets={"train": examples, "test": examples[:4]},
        data_dir=data_dir,
    )


def run_prepare(arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert prepare.main(arguments) == 0
    return printed.getvalue()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.rpartition("photos_prc:")[2])
def test_lines_prepare_and_feed_a_recipe(tmp_path, monkeypatch, pair):
    monkeypatch.setattr(logs, "setup_logging", lambda: None)
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "data"))
    files = tmp_path / "files"
    files.mkdir()
    for place, name in PLACES.items():
        if place in pair:
            FORMATS[name][0](files)
            pair = pair.replace(place, str(files))
    if "ARCHIVES" in pair:
        write_archives(files)
    if "PREPARED_BY_TFDS" in pair:
        write_by_tfds(files)
        pair = pair.replace("PREPARED_BY_TFDS", "made_elsewhere")
    pair = pair.replace("ARCHIVES", str(files)).replace("TFDS", str(files))
    *preparing, training = [shlex.split(line) for line in pair.split("\n")]
    for program, flag, module, *arguments in preparing:
        assert (program, flag, module) == ("python", "-m", "vmoe_prc.data.prepare")
        assert re.search(r"\d+ examples", run_prepare(arguments))
    assert training[:3] == ["python", "-m", "vmoe_prc.main"]
    [config_flag], changes = split_config_flags(training[3:])
    source = config_flag.removeprefix("--config=")
    config = complete(override(read_config_file(source, "--config"), changes))
    splits = open_splits(dict(config.dataset.items()))
    with contextlib.closing(pipeline.train_batches(splits["train"], seed=0)) as batches:
        batch = next(batches)
    size = int(re.search("size=([0-9]+)", source)[1]) if "size=" in source else 64
    assert batch["image"].shape == (config.dataset.train.batch_size, 2, size, size, 3)
    assert batch["labels"].shape[1] == config.model.num_classes
    tested = next(pipeline.eval_batches(splits["test"]))
    assert 0 < tested["mask"].sum() <= splits["test"].num_examples


def test_the_page_has_each_format():
    for name in (*FORMATS, "imagenet21k", "digits", "PREPARED_BY_TFDS"):
        assert any(f"={name}" in pair or f"prepare {name}" in pair for pair in PAIRS), name
