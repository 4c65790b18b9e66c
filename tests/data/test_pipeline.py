"""Batches: order, epochs, resuming, processes, evaluation, and every error of a data set."""

import itertools
import os
import pathlib
import shutil
import traceback

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_jpegs import TinyJpegs

from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import OPS
from vmoe_prc.data import files, pipeline, tfrecords
from vmoe_prc.data.feed import prefetch_to_device
from vmoe_prc.data.order import Order
from vmoe_prc.data.split import open_split
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh

NUM_TRAIN, NUM_TEST = 23, 7
TWO_VIEWS = (
    "decode|two_views(8, (50, 100), (50, 100))|flip_lr|value_range(-1, 1)"
    '|onehot(30)|keep("image", "labels", "view_from_image")'
)


def ids(batch):
    return np.argmax(batch["labels"], axis=-1).tolist()


def take(config, count, **options):
    batches = pipeline.train_batches(open_split(config), **{"seed": 3, **options})
    return list(itertools.islice(batches, count))


def assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("cache", [None, "loaded"])
@pytest.mark.parametrize("shuffle_buffer", [0, 100])
@pytest.mark.parametrize("shuffle_block", [1, 4])
def test_every_epoch_has_each_example_once_in_another_order(
    dataset, cache, shuffle_buffer, shuffle_block
):
    config = dataset(shuffle_buffer=shuffle_buffer, shuffle_block=shuffle_block, cache=cache)
    stream = [i for batch in take(config, 23) for i in ids(batch)]
    epochs = [stream[e * NUM_TRAIN : (e + 1) * NUM_TRAIN] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_TRAIN))
    assert (epochs[0] == epochs[1]) == (shuffle_buffer == 0)


@pytest.mark.parametrize("cache", [None, "loaded"])
@pytest.mark.parametrize("start", [1, 5, 6, 13])
def test_resuming_gives_the_same_batches(dataset, start, cache):
    """Batch 5 spans the end of the first epoch."""
    config = dataset(process=TWO_VIEWS, shuffle_buffer=9, cache=cache)
    whole = take(config, 15)
    assert_equal(take(config, 15 - start, start_step=start), whole[start:])


def test_same_seed_same_batches_and_another_seed_others(dataset):
    augmented = TWO_VIEWS.replace("|flip_lr", "|flip_lr|randaug(2, 5, 2, 1)")
    config = dataset(process=augmented, shuffle_buffer=9)
    assert_equal(take(config, 3, seed=1), take(config, 3, seed=1))
    a, b = take(config, 1, seed=1), take(config, 1, seed=2)
    assert not np.array_equal(a[0]["view_from_image"], b[0]["view_from_image"])


def test_augmentation_differs_from_epoch_to_epoch(dataset):
    config = dataset(process=TWO_VIEWS, batch_size=NUM_TRAIN)
    first, second = take(config, 2)
    assert ids(first) == ids(second)
    assert not np.array_equal(first["view_from_image"], second["view_from_image"])
    # Nor are the views of an image, or the views of neighbours, the same.
    matrices = first["view_from_image"].reshape(-1, 9)
    assert len(np.unique(matrices, axis=0)) == len(matrices)


@pytest.mark.parametrize("process_count", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_together_read_the_global_batch(dataset, process_count):
    config = dataset(process=TWO_VIEWS, shuffle_buffer=9, batch_size=8)
    parts = [
        take(config, 8, start_step=2, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, take(config, 8, start_step=2))


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_evaluation_reads_each_example_once(dataset, process_count, batch_size):
    split = open_split(dataset(split="test", batch_size=batch_size))
    parts = [
        list(pipeline.eval_batches(split, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-NUM_TEST // batch_size)}
    seen = []
    for batch in itertools.chain(*parts):
        assert batch["image"].shape == (batch_size // process_count, 8, 8, 3)
        seen += np.asarray(ids(batch))[batch["mask"]].tolist()
        assert not batch["image"][~batch["mask"]].any()
    assert sorted(seen) == list(range(NUM_TEST))


@pytest.mark.parametrize("process_count", [1, 2, 4, 8, 64])
def test_each_process_reads_only_its_rows(dataset, process_count):
    """Bytes of records that are read, counted; together the processes read each record once."""
    split = open_split(dataset(batch_size=64))
    whole = sum(map(len, split.records.read(range(NUM_TRAIN))))
    read, counts = split.records.read, []
    for process in range(process_count):
        sizes = []

        def counted(numbers, sizes=sizes):
            records = read(numbers)
            sizes += map(len, records)
            return records

        split.records.read = counted
        rows = {"process_index": process, "process_count": process_count}
        assert len(list(pipeline.eval_batches(split, **rows))) == 1
        counts.append(sum(sizes))
    assert sum(counts) == whole
    assert max(counts) <= whole * -(-64 // process_count) / NUM_TRAIN * 1.3


def test_evaluation_sees_the_same_views_every_time(dataset):
    split = open_split(dataset(split="test", process=TWO_VIEWS))
    assert_equal(pipeline.eval_batches(split), pipeline.eval_batches(split))


def test_batch_spec_is_that_of_the_batches(dataset):
    split = open_split(dataset(process=TWO_VIEWS))
    spec = split.batch_spec(train=True)
    sharding = batch_sharding(create_mesh(1, jax.devices()[:1]))
    rows = next(pipeline.train_batches(split, seed=0))
    [batch] = prefetch_to_device([rows], sharding, 1, split.value_range)
    assert {k: (x.shape, x.dtype) for k, x in spec.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }
    assert spec["image"].shape == (4, 2, 8, 8, 3)
    assert split.batch_spec(train=False)["mask"].shape == (4,)


def test_parts_of_splits(dataset):
    assert open_split(dataset(split="train[:10]")).num_examples == 10
    [batch] = pipeline.eval_batches(open_split(dataset(split="train[10:]", batch_size=13)))
    assert ids(batch) == list(range(10, 23))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tiny_jpeg"}, "x.name = 'tiny_jpeg': is neither a data set of TFDS nor"),
        ({"name": "digitss"}, "did you mean 'digits'"),
        (
            {"name": "cifar10"},
            "x.name = 'cifar10': is not prepared in .*vmoe_prc.data.prepare cifar10",
        ),
        (
            {"split": "tests"},
            "x.split = 'tests': no such split; .*train.*did you mean 'test'",
        ),
        ({"split": "train[:0]"}, "x.split = 'train.:0.': has no examples"),
        ({"process": "decod"}, "x.process = 'decod': unknown op"),
        ({"process": "decode|value_range(-1, 1)|onehot(30)"}, "'image' needs a fixed size, not"),
        ({"process": "decode|resize(8)|onehot(30)"}, r"add value_range\(-1, 1\)"),
        ({"process": "decode|resize(8)|value_range(-1, 1)"}, "the result lacks 'labels'"),
        ({"process": 'onehot(30)|keep("image", "labels")'}, "'image' is not made of numbers"),
        (
            {"process": 'decode|onehot(30)|copy("labels", "image")|keep("image", "labels")'},
            r"images need 3 axes, or 4 for two views, not the shape \(30,\)",
        ),
        (
            {"process": TWO_VIEWS.replace(', "view_from_image"', "")},
            "two views need 'view_from_image'",
        ),
        ({"process": 'decode|keep("imag")'}, "the example has no 'imag'; it has image"),
    ],
)
def test_errors(dataset, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        open_split(dataset(**options), "x")
    assert "\n" not in str(error.value)


def test_a_bug_in_an_op_keeps_its_traceback(dataset):
    @OPS.register()
    def broken():
        def op(example, rng):
            # Fine for the blank images of the check, which are black.
            return {**example, "image": example["image"] + (None if example["label"] == 3 else 0)}

        return op

    process = 'decode|resize(8)|broken|value_range(-1, 1)|onehot(30)|keep("image", "labels")'
    split = open_split(dataset(process=process))
    with pytest.raises(TypeError) as error:
        take(split.config, 10)
    assert 'example["image"] + (None' in "".join(traceback.format_exception(error.value))


def test_a_bug_that_the_check_meets_says_where_it_was(dataset):
    @OPS.register()
    def misspelt():
        return lambda example, rng: {**example, "image": example["imgae"]}

    with pytest.raises(KeyError, match="imgae") as error:
        open_split(dataset(process="decode|misspelt"), "x")
    assert error.value.__notes__ == ["(in x.process = 'decode|misspelt', tried on a blank image)"]
    assert error.traceback[-1].path == pathlib.Path(__file__)


def test_labels_beyond_the_classes_are_found_before_the_start(dataset):
    process = 'decode|resize(8)|value_range(-1, 1)|onehot(29)|keep("image", "labels")'
    with pytest.raises(ConfigError, match="'label' may be 29, and num_classes = 29 is too small"):
        open_split(dataset(process=process))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_file_formats_give_the_same_batches(dataset, tmp_path, file_format):
    config = tfds.download.DownloadConfig(num_shards=4)
    builder = TinyJpegs(data_dir=tmp_path)
    builder.download_and_prepare(download_config=config, file_format=file_format)
    options = {"process": TWO_VIEWS, "shuffle_buffer": 1}
    other = dataset(**options, data_dir=str(tmp_path))
    assert_equal(take(other, 8), take(dataset(**options), 8))


def test_one_request_reads_all_adjacent_records(dataset, monkeypatch):
    """Blocks of the shuffle are adjacent records: a request brings those that a chunk needs."""
    records = open_split(dataset()).records
    expected = [records.read([number])[0] for number in range(NUM_TRAIN)]
    requests, read_range = [], tfrecords.read_range

    def counted(path, begin, end):
        requests.append((path, begin, end))
        return read_range(path, begin, end)

    monkeypatch.setattr(tfrecords, "read_range", counted)
    order = Order(NUM_TRAIN, seed=1, block=NUM_TRAIN)
    numbers = order.numbers(np.arange(NUM_TRAIN)).tolist()
    assert numbers != sorted(numbers)
    # Twice the same record, and none.
    assert records.read([*numbers, 3]) == [*(expected[number] for number in numbers), expected[3]]
    assert records.read([]) == []
    assert len(requests) == len({path for path, *_ in requests}) < NUM_TRAIN
    monkeypatch.setattr(files, "_MOST_AT_ONCE", 2)
    assert records.read(numbers) == [expected[number] for number in numbers]


def test_the_index_of_tfrecords_is_written_once_and_checked(dataset, data_dir, tmp_path):
    directory = shutil.copytree(data_dir, tmp_path / "tfds")
    config = dataset(data_dir=str(directory))
    for path in directory.glob("**/*.offsets.npz"):
        path.unlink()
    expected = take(config, 2)
    [index] = directory.glob("**/*.offsets.npz")
    changed = index.stat().st_mtime_ns
    assert_equal(take(config, 2), expected)
    assert index.stat().st_mtime_ns == changed
    index.write_bytes(index.read_bytes()[:100])
    assert_equal(take(config, 2), expected)
    # A file that was written anew is read again.
    path = min(directory.glob("**/*train*tfrecord-0*"))
    os.utime(path, ns=(1, 1))
    assert_equal(take(config, 2), expected)
    assert index.stat().st_mtime_ns != changed
