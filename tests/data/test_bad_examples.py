"""Damaged records and images that cannot be decoded, in real files, at the places of good ones."""

import itertools
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from vmoe_prc.data import pipeline
from vmoe_prc.data.split import open_split
from vmoe_prc.errors import RunError

NUM_TRAIN, BATCH_SIZE = 23, 4
PROCESS = 'decode|inception_crop(8)|flip_lr|value_range(-1, 1)|onehot(30)|keep("image", "labels")'


def ids(batch):
    return np.argmax(batch["labels"], axis=-1).tolist()


@pytest.fixture
def bad_data(data_dir, tmp_path):
    """Three bad examples of 23: a flipped bit, a destroyed length and a truncated image.

    Returns the directory, and the classes that the bad examples had.
    """
    directory = tmp_path / "tfds"
    shutil.copytree(data_dir, directory)
    files = sorted(directory.glob("tiny_jpegs/*/*train*tfrecord*"))
    records = [[r.numpy() for r in tf.data.TFRecordDataset(str(path))] for path in files]
    offsets = [np.cumsum([0] + [len(r) + 16 for r in file]) for file in records]
    flip(files[0], offsets[0][1] + 12 + len(records[0][1]) // 2)
    flip(files[1], offsets[1][len(records[1]) - 1] + 3)
    truncated = [truncate(r) if i == 0 else r for i, r in enumerate(records[2])]
    with tf.io.TFRecordWriter(str(files[2])) as writer:
        for record in truncated:
            writer.write(record)
    bad = [records[0][1], records[1][-1], records[2][0]]
    return str(directory), [label(record) for record in bad]


def flip(path: pathlib.Path, position: int):
    content = bytearray(path.read_bytes())
    content[position] ^= 64
    path.write_bytes(content)


def truncate(record: bytes) -> bytes:
    example = tf.train.Example.FromString(record)
    image = example.features.feature["image"].bytes_list
    image.value[0] = image.value[0][:100]
    return example.SerializeToString()


def label(record: bytes) -> int:
    return tf.train.Example.FromString(record).features.feature["label"].int64_list.value[0]


def take(config, count, **options):
    batches = pipeline.train_batches(open_split(config), seed=3, **options)
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("cache", [None, "loaded"])
def test_in_training_another_image_takes_the_place(dataset, bad_data, cache):
    directory, bad = bad_data
    options = {"process": PROCESS, "shuffle_buffer": 9, "cache": cache}
    clean = take(dataset(**options), 12)
    damaged = dataset(**options, data_dir=directory)
    batches = take(damaged, 12)
    replaced = 0
    for batch, expected in zip(batches, clean, strict=True):
        for row, (now, before) in enumerate(zip(ids(batch), ids(expected), strict=True)):
            if before in bad:
                replaced += 1
                assert now == 0  # the first example of the split
            else:
                assert now == before
                np.testing.assert_array_equal(batch["image"][row], expected["image"][row])
    assert replaced >= 2 * len(bad)  # in each of two epochs
    # Whenever it began, and however many processes read it.
    for resumed, batch in zip(take(damaged, 5, start_step=7), batches[7:], strict=True):
        np.testing.assert_array_equal(resumed["image"], batch["image"])
    halves = [take(damaged, 8, process_index=i, process_count=2) for i in range(2)]
    for first, second, batch in zip(*halves, batches[:8], strict=True):
        joined = np.concatenate([first["image"], second["image"]])
        np.testing.assert_array_equal(joined, batch["image"])


@pytest.mark.parametrize("process_count", [1, 2])
def test_in_evaluation_its_row_is_masked(dataset, bad_data, process_count):
    directory, bad = bad_data
    split = open_split(dataset(data_dir=directory, batch_size=BATCH_SIZE))
    seen = [
        i
        for process in range(process_count)
        for batch in pipeline.eval_batches(
            split, process_index=process, process_count=process_count
        )
        for i, counts in zip(ids(batch), batch["mask"], strict=True)
        if counts
    ]
    assert sorted([*seen, *bad]) == list(range(NUM_TRAIN))


def test_batches_of_nothing_else(dataset, bad_data):
    directory, bad = bad_data
    split = open_split(dataset(data_dir=directory, batch_size=1))
    masks = [bool(batch["mask"][0]) for batch in pipeline.eval_batches(split)]
    assert (len(masks), sum(masks)) == (NUM_TRAIN, NUM_TRAIN - len(bad))


def test_each_is_named_once_and_beyond_the_limit_all_are(dataset, bad_data, caplog):
    directory, _ = bad_data
    take(dataset(data_dir=directory), 18)  # three epochs
    assert caplog.text.count("is left out") == 3
    with pytest.raises(RunError) as error:
        take(dataset(data_dir=directory, max_bad_examples=2), 18)
    message = str(error.value)
    assert "tiny_jpegs (train) has 3 bad examples, more than max_bad_examples = 2" in message
    for word in ("record 1 of", "train.tfrecord-00000", "damaged", "record 0 of", "Invalid JPEG"):
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize("cache", [None, "loaded"])
def test_a_file_that_is_gone(dataset, bad_data, cache):
    directory, _ = bad_data
    for path in pathlib.Path(directory).glob("tiny_jpegs/*/*train*tfrecord*"):
        path.unlink()
    with pytest.raises(RunError, match=r"tiny_jpegs \(train\) cannot be read: .*tfrecord"):
        take(dataset(data_dir=directory, cache=cache), 1)
