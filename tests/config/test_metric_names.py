"""Names of metrics: writing and reading them are inverse."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.config.metric_names import MetricName, block_order, parse_name, under

WORDS = st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True)
MEASURES = WORDS.filter(lambda word: not word.endswith(("_low", "_high")))
NUMBERS = st.integers(0, 200)
BOUNDS = st.none() | st.sampled_from(["low", "high"])
BLOCKS = st.builds("{}_{}".format, WORDS, NUMBERS)
NAMES = st.one_of(
    st.builds(MetricName, MEASURES, bound=BOUNDS),
    st.builds(MetricName, MEASURES, WORDS, bound=BOUNDS),
    st.builds(MetricName, MEASURES, WORDS, BLOCKS, st.none() | NUMBERS, BOUNDS),
    st.builds(
        MetricName,
        st.sampled_from(["shot", "shot_l2"]),
        st.just("fewshot"),
        dataset=WORDS | st.just("a/b"),
        shots=NUMBERS,
    ),
)


@given(NAMES)
def test_a_written_name_is_read_again(name):
    assert parse_name(str(name)) == name


@given(st.text() | st.from_regex(r"(test/|fewshot/|b_1/|/|[a-z]|0[0-9]|_low|shot){0,8}"))
def test_a_name_that_was_read_is_written_again(text):
    assert str(parse_name(text)) == text


@given(NAMES.filter(lambda name: name.group is not None))
def test_names_are_put_into_their_group(name):
    relative = dataclasses.replace(name, group=None)
    assert list(under(name.group, {str(relative): 1})) == [str(name)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("step", MetricName("step")),
        ("test/accuracy", MetricName("accuracy", "test")),
        ("test_pairs/top1_low", MetricName("top1", "test_pairs", bound="low")),
        (
            "test/encoderblock_11/load/0",
            MetricName("load", "test", block="encoderblock_11", expert=0),
        ),
        ("train/global_norm/grads", MetricName("global_norm/grads", "train")),
        ("fewshot/cifar10/5shot", MetricName("shot", "fewshot", dataset="cifar10", shots=5)),
        ("fewshot/cifar10/5shot_l2", MetricName("shot_l2", "fewshot", dataset="cifar10", shots=5)),
    ],
)
def test_the_names_of_earlier_runs(text, name):
    assert parse_name(text) == name
    assert str(name) == text


def test_blocks_are_ordered_by_number():
    blocks = ["encoderblock_11", "encoderblock_3", "head"]
    assert sorted(blocks, key=block_order) == ["head", "encoderblock_3", "encoderblock_11"]
