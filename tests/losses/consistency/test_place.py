"""Losses by place: their formulas, and what whole-image routers are worth to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.losses.consistency import prc_loss
from vmoe_prc.losses.consistency.place import iic_loss, place_prc_loss

IMAGES, PATCHES, EXPERTS = 8, 6, 4


def identity_pairs(images=IMAGES, patches=PATCHES):
    return jnp.broadcast_to(jnp.arange(patches)[None, :, None], (images, patches, 2))


def one_hot_gates(experts):
    """Gates (B, 2, T, E) of views that agree, from the experts (B, T) of their tokens."""
    return jnp.stack([jax.nn.one_hot(experts, EXPERTS)] * 2, axis=1)


WHOLE_IMAGE = one_hot_gates(jnp.repeat(jnp.arange(IMAGES)[:, None] % EXPERTS, PATCHES, axis=1))
BY_PLACE = one_hot_gates((jnp.arange(PATCHES)[None] + 3 * jnp.arange(IMAGES)[:, None]) % EXPERTS)


def test_a_whole_image_router_minimises_prc_and_is_worth_nothing_by_place():
    pairs = identity_pairs()
    assert prc_loss(WHOLE_IMAGE, pairs)[0] == pytest.approx(0, abs=1e-7)
    assert place_prc_loss(WHOLE_IMAGE, pairs) == pytest.approx(0, abs=1e-7)
    assert iic_loss(WHOLE_IMAGE, pairs, balance=0.0) == pytest.approx(0, abs=1e-6)
    assert iic_loss(WHOLE_IMAGE, pairs, within_images=False) < -0.03


def test_a_place_router_is_rewarded():
    pairs = identity_pairs()
    assert place_prc_loss(BY_PLACE, pairs) < -0.01
    assert iic_loss(BY_PLACE, pairs, balance=0.0) < -0.03


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.ones(EXPERTS), size=(IMAGES, 2, PATCHES)).astype(np.float32)
    pairs = np.stack([rng.permuted(np.tile(np.arange(PATCHES), (IMAGES, 1)), axis=1)] * 2, -1)
    pairs[..., 1] = rng.integers(PATCHES, size=pairs.shape[:2])
    pairs[rng.random(pairs.shape[:2]) < 0.4] = -1
    return gates, pairs


def test_place_prc_is_its_formula():
    gates, pairs = random_case()
    s, n = np.zeros((EXPERTS, EXPERTS)), 0
    for image, image_pairs in zip(gates, pairs, strict=True):
        kept = image_pairs[image_pairs[:, 0] >= 0]
        a, b = image[0, kept[:, 0]], image[1, kept[:, 1]]
        s += a.T @ b - len(kept) * np.outer(a.mean(0), b.mean(0))
        n += len(kept)
    s *= EXPERTS / n
    off = s - np.diag(np.diag(s))
    expected = 0.05 * (off**2).sum() / (EXPERTS * (EXPERTS - 1)) - 0.03 * np.diag(s).mean()
    assert place_prc_loss(gates, pairs) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("within", [True, False])
def test_iic_is_its_formula(within):
    gates, pairs = random_case(1)
    joints, counts = [], []
    for image, image_pairs in zip(gates.astype(np.float64), pairs, strict=True):
        kept = image_pairs[image_pairs[:, 0] >= 0]
        joint = image[0, kept[:, 0]].T @ image[1, kept[:, 1]]
        joints.append((joint + joint.T) / 2)
        counts.append(len(kept))
    share = np.array(counts) / sum(counts)

    def information(p):
        return (p * np.log(p / np.outer(p.sum(1), p.sum(0)))).sum()

    if within:
        means = [j / c for j, c in zip(joints, counts, strict=True)]
        p = sum(w * m.sum(1) for w, m in zip(share, means, strict=True))
        entropy = -(p * np.log(p)).sum()
        value = sum(w * information(m) for w, m in zip(share, means, strict=True)) + 0.5 * entropy
    else:
        value = information(sum(joints) / sum(counts))
    assert iic_loss(gates, pairs, within_images=within) == pytest.approx(-0.03 * value, rel=1e-4)


@pytest.mark.parametrize("loss", [place_prc_loss, iic_loss])
def test_without_pairs_the_loss_is_0_with_zero_gradient(loss):
    gates, _ = random_case()
    none = jnp.full((IMAGES, PATCHES, 2), -1)
    value, gradient = jax.jit(jax.value_and_grad(loss))(gates, none)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
