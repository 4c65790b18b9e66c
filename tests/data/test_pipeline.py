"""Batches: order, epochs, resuming, processes, evaluation, and every error of a data set."""

import itertools

import jax
import numpy as np
import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.data import pipeline, source
from vmoe_prc.data.feed import device_batches
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh

NUM_TRAIN, NUM_TEST = 23, 7
TWO_VIEWS = (
    "decode|two_views(8, (50, 100), (50, 100))|flip_lr|value_range(-1, 1)"
    '|onehot(30)|keep("image", "labels", "view_from_image")'
)


def ids(batch):
    return np.argmax(batch["labels"], axis=-1).tolist()


def take(config, count, **options):
    return list(itertools.islice(pipeline.train_batches(config, **{"seed": 3, **options}), count))


def assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("cache", [None, "loaded"])
@pytest.mark.parametrize("shuffle_buffer", [0, 7, 100])
def test_every_epoch_has_each_example_once_in_another_order(dataset, cache, shuffle_buffer):
    config = dataset(shuffle_buffer=shuffle_buffer, cache=cache)
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
    # Nor are the views of an image, or those of neighbours, the same.
    matrices = first["view_from_image"].reshape(-1, 9)
    assert len(np.unique(matrices, axis=0)) == len(matrices)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_read_the_global_batch(dataset, process_count):
    config = dataset(process=TWO_VIEWS, shuffle_buffer=9)
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
    config = dataset(split="test", batch_size=batch_size)
    parts = [
        list(pipeline.eval_batches(config, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-NUM_TEST // batch_size)}
    seen = []
    for batch in itertools.chain(*parts):
        assert batch["image"].shape == (batch_size // process_count, 8, 8, 3)
        seen += np.asarray(ids(batch))[batch["mask"]].tolist()
        assert not batch["image"][~batch["mask"]].any()
    assert sorted(seen) == list(range(NUM_TEST))


def test_evaluation_sees_the_same_views_every_time(dataset):
    config = dataset(split="test", process=TWO_VIEWS)
    assert_equal(pipeline.eval_batches(config), pipeline.eval_batches(config))


def test_batch_spec_is_that_of_the_batches(dataset):
    config = dataset(process=TWO_VIEWS)
    spec = pipeline.batch_spec(config, train=True)
    sharding = batch_sharding(create_mesh(1, jax.devices()[:1]))
    [batch] = device_batches(take(config, 1), sharding, 1)
    assert {k: (x.shape, x.dtype) for k, x in spec.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }
    assert spec["image"].shape == (4, 2, 8, 8, 3)
    assert pipeline.batch_spec(config, train=False)["mask"].shape == (4,)


def test_parts_of_splits(dataset):
    assert source.num_examples(dataset(split="train[:10]")) == 10
    config = dataset(split="train[10:]", batch_size=13)
    [batch] = pipeline.eval_batches(config)
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
        pipeline.validate(dataset(**options), "x")
    assert "\n" not in str(error.value)
