"""From serialised examples to rows: every kind of feature, bad examples, randomness, errors."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from vmoe_prc.data.examples import Parser
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.preprocess import Preprocess, find_spec

FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=5),
        "several": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=5)),
        "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
        "weights": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "file_name": tfds.features.Text(),
    }
)
KEPT = 'keep("image", "labels", "weights", "view_from_image")'
PROCESS = f"decode|two_views(8)|flip_lr|value_range(-1, 1)|onehot(5)|{KEPT}"


def record(label, side=20):
    rng = np.random.default_rng(label)
    return FEATURES.serialize_example(
        {
            "image": rng.integers(0, 256, (side, side + 4, 3), np.uint8),
            "label": label,
            "several": [label, 0],
            "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5)}],
            "weights": [label, 0.5],
            "file_name": f"{label}.png",
        }
    )


def preprocess(process, seed=0):
    ops, parse = registry.build(process, "process"), Parser(FEATURES)
    return Preprocess(ops, parse, find_spec(ops, parse), seed)


def test_rows_have_the_shapes_and_dtypes_of_the_spec():
    made = preprocess(PROCESS)
    good, batch = made.rows(range(3), [record(label) for label in range(3)])
    assert good.tolist() == [True] * 3
    assert {key: (x.shape[1:], x.dtype) for key, x in batch.items()} == {
        key: (x.shape, x.dtype) for key, x in made.spec.items()
    }
    assert batch["image"].shape == (3, 2, 8, 8, 3)
    np.testing.assert_array_equal(batch["labels"], np.eye(5)[:3])
    np.testing.assert_array_equal(batch["weights"], [[0, 0.5], [1, 0.5], [2, 0.5]])


def test_plain_examples_are_those_of_tfds():
    """Images, labels and texts are read without TFDS, which says what is wrong with the others."""
    features = tfds.features.FeaturesDict({k: FEATURES[k] for k in ("image", "label", "file_name")})
    pixels = np.zeros((3, 4, 3), np.uint8)
    plain = features.serialize_example({"image": pixels, "label": 4, "file_name": "ü.png"})
    decoders = {"image": tfds.decode.SkipDecoding()}
    expected = features.deserialize_example_np(plain, decoders=decoders)
    assert Parser(features)(plain) == expected
    # Further entries are left out; what is missing is as TFDS has it, and what it refuses is bad.
    assert set(Parser(features)(record(4))) == {"image", "label", "file_name"}
    fewer = tf.train.Example.FromString(plain)
    del fewer.features.feature["label"]
    assert Parser(features)(fewer.SerializeToString()) == {**Parser(features)(plain), "label": None}
    several = tf.train.Example.FromString(plain)
    several.features.feature["label"].int64_list.value.append(1)
    with pytest.raises(BadExampleError, match=r"not an example of this data set: .*label"):
        Parser(features)(several.SerializeToString())


def test_labels_of_a_sequence():
    made = preprocess('decode|resize(4)|onehot(5, inkey="several")|keep("image", "labels")')
    np.testing.assert_array_equal(made.one(0, record(3))["labels"], [1, 0, 0, 1, 0])


def test_bad_rows_are_zeros_and_change_no_others():
    made = preprocess(PROCESS)
    records = [record(label) for label in range(5)]
    _, expected = made.rows(range(5), records)
    # Damaged, not an example, of another data set, and with half an image.
    half = record(3)
    half = half.replace(half[half.index(b"IDAT") + 4 :][:60], bytes(60))
    good, batch = made.rows(range(5), [b"", b"no example", records[2], half, records[4]])
    assert good.tolist() == [False, False, True, False, True]
    for key, x in batch.items():
        assert not x[~good].any()
        np.testing.assert_array_equal(x[good], expected[key][good])


def test_an_example_depends_on_seed_and_position_alone():
    records = [record(label) for label in range(4)]
    _, whole = preprocess(PROCESS).rows(range(4), records)
    _, turned = preprocess(PROCESS).rows([3, 2, 1, 0], records[::-1])
    for key, x in preprocess(PROCESS).one(2, records[2]).items():
        np.testing.assert_array_equal(x, whole[key][2])
        np.testing.assert_array_equal(turned[key][::-1], whole[key])
    for other in (
        preprocess(PROCESS).one(1, records[2]),
        preprocess(PROCESS, 1).one(2, records[2]),
    ):
        assert not np.array_equal(other["view_from_image"], whole["view_from_image"][2])


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_seeds_of_any_size(seed):
    assert preprocess(PROCESS, seed).one(2**40, record(0))["image"].any()


def test_a_crop_that_does_not_fit_is_a_bad_example():
    made = preprocess('decode|central_crop(22)|onehot(5)|keep("image", "labels")')
    good, _ = made.rows(range(2), [record(0), record(1, side=30)])
    assert good.tolist() == [False, True]
    with pytest.raises(registry.BadExampleError, match="20x24 pixels is too small to crop 22x22"):
        made.one(0, record(0))


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ("decode|resize(8)", "'objects' is not made of numbers: leave it out"),
        ('decode|resize(8)|keep("image", "file_name")', "'file_name' is not made of numbers"),
        (
            'decode|resize_small(8)|keep("image")',
            r"'image' needs a fixed size, not \(8, 12, 3\) of one .* and \(12, 8, 3\) of another",
        ),
        ('keep("imag")', "the example has no 'imag'; it has file_name, image"),
        ("resize(8)", "yet: decode the image first"),
        ("onehot(4)", "'label' may be 4, and num_classes = 4 is too small"),
        ('onehot(4, inkey="weights")', "'weights' must be an integer class, not float32"),
    ],
)
def test_errors(process, message):
    with pytest.raises(registry.PreprocessError, match=message):
        preprocess(process)
