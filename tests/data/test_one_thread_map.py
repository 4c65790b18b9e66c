"""Examples are mapped in order, by functions of any kind."""

import numpy as np
import pytest
import tensorflow as tf

from vmoe_prc.data.one_thread_map import one_thread_map

TABLE = tf.constant([10, 20, 30], tf.int64)


def branches(number, word):
    return {"number": tf.cond(number > 1, lambda: number, lambda: -number), "word": word}


def calls_python(number, word):
    doubled = tf.numpy_function(lambda x: 2 * x, [number], tf.int64, stateful=False)
    return tf.ensure_shape(doubled, ()), (word, TABLE[number])


@tf.function
def calls_a_function_that_loops(number, word):
    return tf.while_loop(lambda n: n < 10, lambda n: (n + 3,), (number,))[0]


@pytest.mark.parametrize("function", [branches, calls_python, calls_a_function_that_loops])
def test_it_gives_what_dataset_map_gives(function):
    examples = tf.data.Dataset.from_tensor_slices((np.arange(3), ["a", "b", "c"]))
    mapped, expected = one_thread_map(examples, function), examples.map(function)
    assert mapped.element_spec == expected.element_spec
    assert len(mapped) == 3
    for ours, theirs in zip(mapped, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_an_element_that_fails_can_be_ignored():
    examples = tf.data.Dataset.from_tensor_slices((["1", "x", "3"],))
    numbers = one_thread_map(examples, lambda text: tf.strings.to_number(text, tf.int64))
    assert [int(n) for n in numbers.ignore_errors()] == [1, 3]


def test_it_can_be_made_inside_another_dataset():
    def repeated(count):
        inner = tf.data.Dataset.from_tensor_slices((tf.range(3, dtype=tf.int64), ["a", "b", "c"]))
        return one_thread_map(inner, lambda number, word: (count * number, word))

    outer = tf.data.Dataset.range(2).flat_map(repeated)
    assert [int(number) for number, _ in outer] == [0, 0, 0, 0, 1, 2]
