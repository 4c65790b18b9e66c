"""Agreement taken apart: invented routings whose answer is known, and shuffling by hand."""

import jax
import numpy as np
import pytest

from vmoe_prc.evaluation.agreement import agreement_intervals, agreement_per_image

IMAGES, TOKENS, EXPERTS = 60, 16, 4


def measure(experts, num_experts=EXPERTS, matched=None):
    """Parts of the agreement of (N, 2, T) or (N, 2, T, K) experts, token t matching token t."""
    experts = np.asarray(experts, np.int32)
    experts = experts[..., None] if experts.ndim == 3 else experts
    tokens = np.arange(experts.shape[2])
    pairs = np.broadcast_to(tokens[:, None], (len(experts), len(tokens), 2)).astype(np.int32)
    if matched is not None:
        pairs = np.where(matched[..., None], pairs, -1)
    sums = jax.tree.map(np.asarray, agreement_per_image(experts, pairs, num_experts))
    return agreement_intervals({"block": sums})["block"]


def both_views(experts):
    return np.stack([experts, experts], axis=1)


def test_a_router_of_whole_images_agrees_by_image_and_not_by_place():
    image = np.random.default_rng(0).integers(0, EXPERTS, (IMAGES, 1))
    found = measure(both_views(np.repeat(image, TOKENS, axis=1)))
    assert found["top1"].value == 1 and found["kappa"].value == pytest.approx(1)
    assert found["place"].value == pytest.approx(0, abs=1e-6)
    assert found["image"].value == pytest.approx(1 - found["chance"].value)
    assert np.isnan(found["kappa_place"].value)  # within images there is nothing to agree on


def test_a_perfect_router_of_places_agrees_by_place_alone():
    found = measure(both_views(np.tile(np.arange(TOKENS) % EXPERTS, (IMAGES, 1))))
    assert found["kappa"].value == found["kappa_place"].value == pytest.approx(1)
    assert found["chance"].value == pytest.approx(1 / EXPERTS)
    assert found["image"].value == pytest.approx(0, abs=1e-6)
    assert found["place"].value == pytest.approx(1 - 1 / EXPERTS)


def test_experts_at_random_agree_by_chance():
    rng = np.random.default_rng(1)
    found = measure(rng.integers(0, EXPERTS, (400, 2, TOKENS)))
    assert found["top1"].value == pytest.approx(1 / EXPERTS, abs=0.02)
    for name in ("image", "place", "kappa", "kappa_place"):
        assert found[name].low < 0 < found[name].high and abs(found[name].value) < 0.02


def noisy_places(used, rng):
    """A router that knows the place in 80% of the cases, and else guesses among its experts."""
    places = np.broadcast_to(np.arange(TOKENS) % used, (400, 2, TOKENS))
    guess = rng.integers(0, used, places.shape)
    return np.where(rng.random(places.shape) < 0.8, places, guess)


def test_idle_experts_raise_agreement_and_leave_kappa():
    few, many = (measure(noisy_places(n, np.random.default_rng(2)), 8) for n in (2, 8))
    assert few["top1"].value > many["top1"].value + 0.1
    assert few["kappa"].value == pytest.approx(many["kappa"].value, abs=0.02)
    assert few["kappa_place"].value == pytest.approx(many["kappa_place"].value, abs=0.02)
    # The same router among more experts that nobody uses: the same numbers.
    same = measure(noisy_places(2, np.random.default_rng(2)), 16)
    assert same["kappa"].value == pytest.approx(few["kappa"].value)


@pytest.mark.parametrize("k", [1, 2])
def test_parts_are_expectations_over_shuffles(k):
    """The parts against the agreement of pairs shuffled at random, within and across images."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, EXPERTS, (IMAGES, 1, 1)) * (rng.random((IMAGES, 2, TOKENS)) < 0.5)
    scores = rng.random((IMAGES, 2, TOKENS, EXPERTS)) + np.eye(EXPERTS)[image]
    experts = np.argsort(-scores, axis=-1)[..., :k]
    found = measure(experts)
    a, b = experts[:, 0], experts[:, 1]
    overlap = [[], []]
    for _ in range(200):
        within = rng.permuted(np.broadcast_to(np.arange(TOKENS), (IMAGES, TOKENS)), axis=1)
        shuffled = np.take_along_axis(b, within[..., None], axis=1)
        across = b.reshape(-1, k)[rng.permutation(IMAGES * TOKENS)].reshape(b.shape)
        for values, partner in zip(overlap, (shuffled, across), strict=True):
            values.append(np.mean((a[..., :, None] == partner[..., None, :]).sum((-1, -2)) / k))
    prefix, observed = ("", "top1") if k == 1 else ("overlap_", "overlap")
    parts = {n: found[prefix + n].value for n in ("chance", "image", "place")}
    assert sum(parts.values()) == pytest.approx(found[observed].value, abs=1e-6)
    assert parts["chance"] + parts["image"] == pytest.approx(np.mean(overlap[0]), abs=0.003)
    assert parts["chance"] == pytest.approx(np.mean(overlap[1]), abs=0.003)


def test_images_of_few_pairs_do_not_count():
    """One pair says nothing of place: p_image would be p_o."""
    rng = np.random.default_rng(4)
    experts = rng.integers(0, EXPERTS, (IMAGES, 2, TOKENS))
    matched = np.ones((IMAGES, TOKENS), bool)
    matched[IMAGES // 2 :, 3:] = False
    half, whole = measure(experts, matched=matched), measure(experts[: IMAGES // 2])
    assert half["kappa_place"].value == pytest.approx(whole["kappa_place"].value)
    assert half["top1"].value != whole["top1"].value


def test_all_blocks_average_chance_over_blocks():
    """Two blocks that each send everything to one expert, another one in each block."""
    rng = np.random.default_rng(5)
    experts = [np.full((IMAGES, 2, TOKENS, 1), e) for e in (0, 1)]
    experts[1][:, :, :, 0] = noisy_places(EXPERTS, rng)[:IMAGES]
    tokens = np.broadcast_to(np.arange(TOKENS)[:, None], (IMAGES, TOKENS, 2)).astype(np.int32)
    sums = [
        jax.tree.map(np.asarray, agreement_per_image(e.astype(np.int32), tokens, EXPERTS))
        for e in experts
    ]
    found = agreement_intervals(dict(zip("ab", sums, strict=True)))
    for name in ("top1", "chance", "image", "place"):
        mean = (found["a"][name].value + found["b"][name].value) / 2
        assert found["all"][name].value == pytest.approx(mean)
    assert found["all"]["chance"].value > 0.5


def test_intervals_hold_the_value_and_shrink_with_images():
    rng = np.random.default_rng(6)
    few, many = (measure(noisy_places(4, rng)[:n])["kappa_place"] for n in (25, 400))
    for interval in (few, many):
        assert interval.low < interval.value < interval.high
    assert 2 < (few.high - few.low) / (many.high - many.low) < 8
