"""Information, margins and stability, where the answer is known or can be counted again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from vmoe_prc.analysis.information import (
    conditional_information,
    cut_patches,
    first_choices,
    information_table,
    mutual_information,
)
from vmoe_prc.analysis.margins import margin_table, router_margin
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.stability import stability_table


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


def test_mutual_information():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 2000), rng.integers(0, 3, 2000)
    b = np.where(rng.random(2000) < 0.3, a % 3, b)
    assert mutual_information(a, b) == pytest.approx(mutual_info_score(a, b))
    # Exclusive or: each alone tells nothing, given the other one everything.
    x, y = np.divmod(np.arange(4), 2)
    assert mutual_information(x ^ y, x) == pytest.approx(0)
    assert conditional_information(x ^ y, x, y) == pytest.approx(np.log(2))


def test_patches_are_in_row_major_order():
    images = np.arange(2 * 4 * 6 * 1.0).reshape(2, 4, 6, 1)
    patches = cut_patches(images, (2, 3))
    assert patches.shape == (2, 4, 6)
    np.testing.assert_array_equal(patches[1, 2], images[1, 2:4, 0:3].ravel())


def with_router(run, kernel):
    """The run with another kernel of its router; zeros send every token to the first experts."""
    params = jax.tree.map(lambda x: x, run.params)
    router = params["Encoder"]["encoderblock_1"]["Moe"]["Router"]
    router["dense"]["kernel"] = kernel(router["dense"]["kernel"])
    return dataclasses.replace(run, params=params)


@pytest.mark.slow
def test_a_router_that_ignores_tokens_tells_nothing(run):
    (row,) = information_table(with_router(run, jnp.zeros_like), "test").to_dict("records")
    assert row["experts_in_use"] == row["experts_per_image"] == pytest.approx(1)
    for name in ("entropy", "class", "position", "content", "class_given_position"):
        assert row[name] == pytest.approx(0, abs=1e-9)


def test_information_is_bounded_by_entropy(run):
    (row,) = information_table(run, "test").to_dict("records")
    assert 1 < row["experts_per_image"] <= row["experts_in_use"] <= run.num_experts
    assert all(0 <= row[n] <= row["entropy"] for n in ("class", "position", "content"))


@pytest.mark.slow
def test_margins(run):
    logits = jnp.array([[3.0, 1.0, 2.5, 0.0]])
    assert router_margin(logits, 1)[0] == 0.5 and router_margin(logits, 2)[0] == 1.5
    (row,) = margin_table(run, "test").to_dict("records")
    assert 0 < row["margin_05"] < row["margin_50"] < row["margin_95"]
    assert row["distance"] > 0 and row["jump"] > 0
    # A larger kernel has larger margins, and switches at the same images.
    (larger,) = margin_table(with_router(run, lambda k: 2 * k), "test").to_dict("records")
    assert larger["margin_50"] == pytest.approx(2 * row["margin_50"], rel=1e-3)
    assert larger["distance"] == pytest.approx(row["distance"], rel=1e-3)


@pytest.mark.slow
def test_renamed_experts_choose_alike(run, finished):
    """Checkpoints agree on names, seeds only up to names."""
    renamed = with_router(run, lambda kernel: jnp.roll(kernel, 1, axis=1))
    other = dataclasses.replace(renamed, name="renamed")
    (row,) = stability_table([run, other], "test").to_dict("records")
    assert row["same"] < 0.01 and row["ami"] == pytest.approx(1)
    (row,) = stability_table([run, run], "test").to_dict("records")
    assert row["same"] == 1 and row["ami"] == pytest.approx(1)
    earlier = open_run(finished[0], step=3)
    assert earlier.name.endswith(", step 3")
    (row,) = stability_table([earlier, run], "test").to_dict("records")
    assert 0.3 < row["same"] < 1
    firsts = first_choices(run, "test")
    assert firsts.experts["encoderblock_1"].shape == (len(firsts.labels), 16)
