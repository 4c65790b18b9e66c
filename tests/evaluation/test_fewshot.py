"""Few-shot ridge regression: against its formula, and how it chooses."""

import numpy as np
import pytest

from vmoe_prc.evaluation.fewshot import fewshot_accuracies

CLASSES, SIZE = 4, 16


def clusters(rng, num, spread):
    labels = rng.integers(0, CLASSES, num)
    centres = 3 * np.eye(CLASSES, SIZE)
    features = centres[labels] + spread * rng.normal(size=(num, SIZE))
    return features.astype(np.float32), labels


def splits(spread=0.1, num=200):
    rng = np.random.default_rng(0)
    return {name: clusters(rng, num, spread) for name in ("train", "val", "test")}


def closed_form(train, test, l2):
    """V-MoE's: standardised features, a constant of 100 for the bias, targets of -1 and 1."""
    (x, y), (z, _) = ((a.astype(np.float64), b) for a, b in (train, test))
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, z = ((np.pad((a - mean) / std, ((0, 0), (0, 1)), constant_values=100)) for a in (x, z))
    targets = 2.0 * np.eye(CLASSES)[y] - 1.0
    if len(x) > SIZE:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(SIZE + 1), x.T @ targets)
    else:  # More features than images: through the products of images.
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), targets)
    return np.argmax(z @ weights, -1)


def test_tells_clusters_apart():
    assert fewshot_accuracies(splits(), shots=[40], l2_regs=[1.0])["40shot"] == 1.0


@pytest.mark.parametrize("l2", [2.0**-10, 0.01, 1.0, 100.0, 1024.0])
@pytest.mark.parametrize("num", [12, 200])
def test_agrees_with_the_formula(l2, num):
    examples = splits(spread=2.0) | {"train": splits(spread=2.0, num=num)["train"]}
    ours = fewshot_accuracies(examples, shots=[num], l2_regs=[l2])[f"{num}shot"]
    expected = closed_form(examples["train"], examples["test"], l2) == examples["test"][1]
    assert ours == pytest.approx(expected.mean(), abs=1e-6)
    assert 0.25 < ours < 1


def test_the_validation_split_chooses_and_the_test_split_does_not():
    examples = splits(spread=3.0)
    l2_regs = [2.0**i for i in range(-10, 20)]
    chosen = fewshot_accuracies(examples, [2], l2_regs)["2shot_l2"]
    on_validation = {
        l2: fewshot_accuracies({**examples, "test": examples["val"]}, [2], [l2])["2shot"]
        for l2 in l2_regs
    }
    best = max(on_validation.values())
    assert chosen == max(l2 for l2, accuracy in on_validation.items() if accuracy == best)


def test_more_shots_help_and_the_seed_chooses_the_images():
    examples = splits(spread=2.0)
    results = fewshot_accuracies(examples, [1, 40], [10.0])
    assert results["40shot"] > results["1shot"]
    assert fewshot_accuracies(examples, [1], [10.0], seed=1)["1shot"] != results["1shot"]
