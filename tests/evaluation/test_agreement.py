"""Agreement against a recomputation pair by pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.evaluation.agreement import agreement_per_image


def recompute(experts, pairs):
    sums = {"num_pairs": 0, "top1": 0, "overlap": 0.0, "top2": 0, "top2_unordered": 0}
    for i, j in pairs[pairs[:, 0] >= 0]:
        a, b = experts[0, i].tolist(), experts[1, j].tolist()
        sums["num_pairs"] += 1
        sums["top1"] += a[0] == b[0]
        sums["overlap"] += len(set(a) & set(b)) / len(a)
        sums["top2"] += a[:2] == b[:2]
        sums["top2_unordered"] += set(a[:2]) == set(b[:2])
    return sums


@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 2, 3]))
def test_recomputed(seed, k):
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((3, 2, 6, 4)), axis=-1)[..., :k].astype(np.int32)
    pairs = rng.integers(0, 6, (3, 5, 2)).astype(np.int32)
    pairs[rng.random((3, 5)) < 0.4] = -1
    actual = agreement_per_image(experts, pairs, num_experts=4)
    assert ("top2" in actual) == (k > 1)
    for image in range(3):
        expected = recompute(experts[image], pairs[image])
        for name in expected.keys() & actual.keys():
            assert actual[name][image] == pytest.approx(expected[name])
