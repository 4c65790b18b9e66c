"""Experts from clusters of a dense model's activations (after arXiv 2604.13508).

The tokens that enter the MLP of a block are clustered, one cluster for each expert. An expert is
the dense MLP, cut to the subspace in which it acts on the tokens of its cluster; the router
begins with the centroids, so that tokens choose the expert of their cluster.

Read from the abstract and summaries of the paper: spherical k-means, the truncated singular value
decomposition of what the weights make of the tokens, and centroids as weights of the router.
Inferred here: the rank (the fewest directions with `energy` of the sum of squares), that both
layers are cut, and that centroids have the length 1. The paper's loss of self-distillation is not
here.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from vmoe_prc.checkpoints.names import flattened
from vmoe_prc.config import ConfigError
from vmoe_prc.models import create_model
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.program import Program

FIELD = "config.initialization.clusters"

Params = Mapping[str, Any]


def cluster_experts(program: Program, state: TrainState) -> tuple[TrainState, str]:
    """Makes the experts of a new state from clusters of the tokens of training images.

    Args:
      program: The program of the run.
      state: A state whose experts are copies of a dense MLP.

    Returns:
      The state, sharded as before, and a line for each block.

    Raises:
      ConfigError: See `upcycle_by_clusters`.
    """
    count = program.config.initialization.clusters.images
    images: list[np.ndarray] = []
    with contextlib.closing(program.train_batches(0)) as batches:
        while sum(map(len, images)) < count:
            batch = np.asarray(next(batches)["image"])
            images.append(batch.reshape(-1, *batch.shape[-3:]))
    params, table = upcycle_by_clusters(
        program.config, state.params, np.concatenate(images)[:count]
    )
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
    average = None if state.ema_params is None else jax.tree.map(jax.numpy.copy, params)
    return dataclasses.replace(state, params=params, ema_params=average), table


def upcycle_by_clusters(
    config: ml_collections.ConfigDict, params: Params, images: Float[np.ndarray, "N H W 3"]
) -> tuple[dict[str, Any], str]:
    """Replaces equal experts by experts of clusters, and routers by their centroids.

    Args:
      config: The configuration; `initialization.clusters` has the options.
      params: Parameters of the model, nested by name, whose experts are copies of a dense MLP.
      images: Images as the model sees them in training.

    Returns:
      The new parameters on the host, and a line for each block: rank of the layers and share of
      the tokens of each cluster.

    Raises:
      ConfigError: If a cluster would be empty, or several processes train.
    """
    if jax.process_count() > 1:
        raise ConfigError(FIELD, jax.process_count(), "expected one process; start from its result")
    flat = flattened(jax.device_get(params))
    moe = config.model.encoder.moe
    blocks = [f"encoderblock_{layer}" for layer in moe.layers]
    dense = {name: x for name, x in flat.items() if "/Moe/" not in name}
    for block in blocks:
        prefix = f"Encoder/{block}"
        for layer in ("Dense_0", "Dense_1"):
            for name in ("kernel", "bias"):
                experts = flat[f"{prefix}/Moe/Mlp/{layer}/{name}"]
                dense[f"{prefix}/Mlp/{layer}/{name}"] = experts.mean(axis=0)
    tokens = _tokens(config, dense, images, blocks)
    lines = []
    for block in blocks:
        prefix, x = f"Encoder/{block}", tokens[block]
        centroids, cluster = cluster_tokens(x, moe.num_experts, config.seed)
        layers = {
            name.removeprefix(f"{prefix}/Mlp/"): value
            for name, value in dense.items()
            if name.startswith(f"{prefix}/Mlp/")
        }
        energy = config.initialization.clusters.energy
        experts = [
            cut_mlp(layers, x[cluster == e], config.model.encoder.gelu, energy)
            for e in range(moe.num_experts)
        ]
        for name in layers:
            flat[f"{prefix}/Moe/Mlp/{name}"] = np.stack([expert[name] for expert, _ in experts])
        flat[f"{prefix}/Moe/Router/dense/kernel"] = centroids.T
        shares = np.bincount(cluster, minlength=moe.num_experts) / len(cluster)
        ranks = ", ".join("/".join(map(str, rank)) for _, rank in experts)
        lines.append(f"{block}: ranks {ranks}; shares {', '.join(f'{s:.3f}' for s in shares)}")
    return flax.traverse_util.unflatten_dict(flat, sep="/"), "\n".join(lines)


def cluster_tokens(
    tokens: Float[np.ndarray, "N D"], count: int, seed: int
) -> tuple[Float[np.ndarray, "count D"], Int[np.ndarray, " N"]]:
    """Clusters tokens by their directions.

    Returns:
      Centroids of length 1, float32, and the cluster of each token.

    Raises:
      ConfigError: If there are fewer directions than clusters.
    """
    from sklearn.cluster import KMeans

    units = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-9)
    if len(np.unique(units.round(6), axis=0)) < count:
        raise ConfigError(FIELD, len(tokens), f"expected tokens of at least {count} directions")
    # The default of scikit-learn, a string, is all that a type checker sees of `n_init`.
    found = KMeans(
        count,
        n_init=3,  # pyright: ignore[reportArgumentType]
        random_state=seed % 2**32,
    ).fit(units)
    centroids = found.cluster_centers_
    centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    # By direction, as the router will choose.
    return centroids.astype(np.float32), np.argmax(units @ centroids.T, axis=1)


def cut_mlp(
    layers: Mapping[str, np.ndarray], tokens: Float[np.ndarray, "N D"], gelu: str, energy: float
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Cuts both layers of an MLP to the subspaces in which they act on some tokens.

    Args:
      layers: `Dense_0/kernel` (D, M) and so on.
      tokens: The tokens.
      gelu: Form of the GELU.
      energy: Share of the sum of squares of a layer's outputs that is kept.

    Returns:
      The layers of the same shapes, and the rank of either kernel.
    """
    first, rank0 = _cut(layers["Dense_0/kernel"], tokens, energy)
    hidden = tokens @ layers["Dense_0/kernel"] + layers["Dense_0/bias"]
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=gelu == "tanh"))
    second, rank1 = _cut(layers["Dense_1/kernel"], hidden, energy)
    return {**layers, "Dense_0/kernel": first, "Dense_1/kernel": second}, (rank0, rank1)


def _cut(
    kernel: Float[np.ndarray, "I O"], inputs: Float[np.ndarray, "N I"], energy: float
) -> tuple[np.ndarray, int]:
    """Returns the kernel W of the lowest rank whose outputs X W keep a share of their energy.

    With the right singular vectors V of X W the best of rank r is W V_r V_r'.
    """
    _, values, right = np.linalg.svd(inputs @ kernel, full_matrices=False)
    kept = np.cumsum(values.astype(np.float64) ** 2)
    rank = 1 + int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12)))
    rank = min(rank, len(values))
    return (kernel @ right[:rank].T @ right[:rank]).astype(np.float32), rank


def _tokens(
    config: ml_collections.ConfigDict,
    dense: Mapping[str, np.ndarray],
    images: Float[np.ndarray, "N H W 3"],
    blocks: list[str],
) -> dict[str, np.ndarray]:
    """Returns the tokens that enter the MLPs of blocks of the dense model, (tokens, D)."""
    options = config.model.to_dict()
    options["encoder"]["moe"]["layers"] = ()
    model = create_model(options, deterministic=True)

    @jax.jit
    def run(params, batch):
        _, captured = model.apply(
            {"params": params},
            batch,
            capture_intermediates=lambda module, _: module.name == "LayerNorm_1",
            mutable=["intermediates"],
        )
        captured = captured["intermediates"]["Encoder"]
        return {block: captured[block]["LayerNorm_1"]["__call__"][0] for block in blocks}

    params = flax.traverse_util.unflatten_dict(dict(dense), sep="/")
    # Images of one shape, for one compilation; a rest is left out.
    parts = [run(params, images[i : i + 32]) for i in range(0, len(images) // 32 * 32 or 1, 32)]
    end = -options["encoder"]["num_registers"] or None
    return {
        block: np.concatenate([np.asarray(p[block], np.float32)[:, :end] for p in parts]).reshape(
            -1, config.model.hidden_size
        )
        for block in blocks
    }
