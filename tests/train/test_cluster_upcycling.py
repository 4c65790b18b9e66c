"""Experts from clusters of a dense model's activations."""

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import pytest

from tests.tiny import one_view_batch, tiny_model
from vmoe_prc.config import ConfigError
from vmoe_prc.train.cluster_upcycling import cluster_tokens, cut_mlp, upcycle_by_clusters

RNG = np.random.default_rng(0)


def mlp(width=8, hidden=16):
    def normal(*shape):
        return RNG.normal(size=shape).astype(np.float32)

    return {
        "Dense_0/kernel": normal(width, hidden),
        "Dense_0/bias": normal(hidden),
        "Dense_1/kernel": normal(hidden, width),
        "Dense_1/bias": normal(width),
    }


def apply(layers, x):
    hidden = jax.nn.gelu(x @ layers["Dense_0/kernel"] + layers["Dense_0/bias"])
    return hidden @ layers["Dense_1/kernel"] + layers["Dense_1/bias"]


def test_an_expert_does_on_its_tokens_what_the_dense_mlp_does():
    layers = mlp()
    # Tokens of a subspace of 2 dimensions.
    tokens = (RNG.normal(size=(100, 2)) @ RNG.normal(size=(2, 8))).astype(np.float32)
    expert, (rank, _) = cut_mlp(layers, tokens, "tanh", energy=1 - 1e-9)
    assert rank == 2 and np.linalg.matrix_rank(expert["Dense_0/kernel"], tol=1e-3) == 2
    np.testing.assert_allclose(apply(expert, tokens), apply(layers, tokens), atol=1e-3)
    others = RNG.normal(size=(100, 8)).astype(np.float32)
    assert np.abs(apply(expert, others) - apply(layers, others)).max() > 0.1


def test_the_rank_is_the_lowest_that_keeps_the_energy():
    layers, tokens = mlp(), RNG.normal(size=(200, 8)).astype(np.float32)
    values = np.linalg.svd(tokens @ layers["Dense_0/kernel"], compute_uv=False) ** 2
    for energy in (0.3, 0.8):
        cut, (rank, _) = cut_mlp(layers, tokens, "tanh", energy)
        kept = np.square(tokens @ cut["Dense_0/kernel"]).sum() / values.sum()
        assert values[: rank - 1].sum() / values.sum() < energy <= kept


def test_tokens_choose_the_expert_of_their_cluster():
    directions = np.eye(8, dtype=np.float32)[:3]
    label = RNG.integers(0, 3, 300)
    tokens = 5 * directions[label] + 0.1 * RNG.normal(size=(300, 8)).astype(np.float32)
    centroids, cluster = cluster_tokens(tokens, 3, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-6)
    assert len(set(zip(label, cluster, strict=True))) == 3
    with pytest.raises(ConfigError, match="at least 4 directions"):
        cluster_tokens(np.repeat(directions, 5, axis=0), 4, seed=0)


@pytest.mark.slow
def test_a_model_keeps_its_other_parameters():
    model, batch = tiny_model(deterministic=True, split_rngs=False), one_view_batch()
    params = jax.jit(model.init)(jax.random.key(0), batch["image"])["params"]
    attributes = {k: getattr(model, k) for k in ("num_classes", "patch_size", "hidden_size")}
    encoder = {**model.encoder, "gelu": "tanh", "num_registers": 0}
    config = ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": {"name": "VisionTransformerMoe", **attributes, "encoder": encoder},
            "initialization": {"clusters": {"images": 16, "energy": 0.9}},
        }
    )
    new, table = upcycle_by_clusters(config, params, np.asarray(batch["image"]))
    new, old = (flax.traverse_util.flatten_dict(x, sep="/") for x in (new, params))
    assert new.keys() == old.keys() and "encoderblock_1: ranks" in table
    moe = "Encoder/encoderblock_1/Moe"
    changed = {
        f"{moe}/Mlp/Dense_0/kernel",
        f"{moe}/Mlp/Dense_1/kernel",
        f"{moe}/Router/dense/kernel",
    }
    assert {name for name in new if not np.array_equal(new[name], old[name])} == changed
    assert {x.shape for x in new.values()} == {x.shape for x in old.values()}
