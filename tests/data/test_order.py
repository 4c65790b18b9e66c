"""The order of streams: permutations, uniformity, processes, and any place at once."""

import numpy as np
import pytest

from vmoe_prc.data.order import Order, Rows, permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 23, 64, 1000, 4097])
@pytest.mark.parametrize("block", [1, 4, 5000])
def test_every_epoch_is_a_permutation_and_another_one(size, block):
    order = Order(size, seed=7, block=block)
    epochs = order.numbers(np.arange(3 * size)).reshape(3, size)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size > 20:
        assert (epochs[0] != epochs[1]).mean() > 0.5
        other = Order(size, seed=8, block=block).numbers(np.arange(size))
        assert (epochs[0] != other).mean() > 0.5


def test_without_shuffling_the_order_of_the_files_stays():
    numbers = Order(5, shuffle=False).numbers(np.arange(7, 16))
    np.testing.assert_array_equal(numbers, [2, 3, 4, 0, 1, 2, 3, 4, 0])


def test_the_order_never_changes():
    """A run must resume in the same order with later versions: these numbers are fixed."""
    first = Order(1_281_167, seed=3).numbers(np.array([0, 1, 1_281_166, 1_281_167, 10**15]))
    assert first.tolist() == [591808, 630658, 213390, 912038, 1197303]
    blocks = Order(1000, seed=-1, block=16).numbers(np.array([0, 1, 15, 16, 999, 1000]))
    assert blocks.tolist() == [240, 254, 246, 531, 174, 416]


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 23, 40])
def test_every_place_and_every_pair_of_places_is_as_likely(size):
    """Chi-squared tests over many epochs, of single places and of neighbours."""
    epochs = 4000
    order = Order(size, seed=1)
    numbers = order.numbers(np.arange(epochs * size)).reshape(epochs, size)
    counts = np.stack([np.bincount(column, minlength=size) for column in numbers.T])
    expected = epochs / size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)
    pairs = np.bincount(numbers[:, 0] * size + numbers[:, 1], minlength=size**2)
    pairs = np.delete(pairs, np.arange(size) * (size + 1))
    expected = epochs / len(pairs)
    statistic = ((pairs - expected) ** 2 / expected).sum()
    assert abs(statistic - len(pairs)) < 5 * np.sqrt(2 * len(pairs))


def test_blocks_stay_together_and_begin_elsewhere_in_each_epoch():
    numbers = Order(1000, seed=2, block=10).numbers(np.arange(2000)).reshape(2, 100, 10)
    spans = np.sort((numbers - numbers.min(-1, keepdims=True)) % 1000, axis=-1)
    # All blocks but the one that wraps around are ten adjacent records, in some order.
    assert ((spans == np.arange(10)).all(-1).mean(-1) >= 0.99).all()
    assert set(numbers[0].min(-1) % 10) != set(numbers[1].min(-1) % 10)
    assert len({tuple(block - block.min()) for block in numbers[0]}) > 50


def test_permutations_with_tweaks_differ():
    indices = np.tile(np.arange(50, dtype=np.uint64), 2)
    tweaks = np.repeat(np.arange(2, dtype=np.uint64), 50)
    first, second = permute(indices, 50, np.arange(8, dtype=np.uint64), tweaks).reshape(2, 50)
    for numbers in (first, second):
        np.testing.assert_array_equal(np.sort(numbers), np.arange(50))
    assert (first != second).mean() > 0.5


def rows_of(order, process_index, process_count, **options):
    rows = Rows(order, 16, process_index=process_index, process_count=process_count, **options)
    first, stop = rows.start // 4, rows.stop if rows.stop is not None else rows.start + 64
    chunks = [rows.chunk(i, 4) for i in range(first, -(-stop // 4))]
    return [np.concatenate(x) for x in zip(*chunks, strict=True)] if chunks else [np.array([])] * 2


@pytest.mark.parametrize("process_count", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("start_step", [0, 5, 1_000_003])
def test_processes_make_disjoint_rows_of_the_same_stream(process_count, start_step):
    order = Order(1000, seed=5)
    steps = 4
    size = 16 // process_count
    parts = [rows_of(order, p, process_count, start_step=start_step) for p in range(process_count)]
    parts = [[x[: steps * size].reshape(steps, size) for x in part] for part in parts]
    positions, numbers = (np.concatenate(x, axis=1).ravel() for x in zip(*parts, strict=True))
    expected = start_step * 16 + np.arange(steps * 16)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(numbers, order.numbers(expected))


@pytest.mark.parametrize("process_count", [1, 2, 4, 16])
@pytest.mark.parametrize("end", [1, 15, 16, 17, 40, 3000])
def test_streams_that_end(process_count, end):
    order = Order(end, shuffle=False)
    parts = [rows_of(order, p, process_count, end=end)[1] for p in range(process_count)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(end))
