"""Similarity of the experts of a block: of their weights, and of their outputs."""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.specialisation import pair_rows
from vmoe_prc.arrays import Array, Float
from vmoe_prc.models.moe import MlpBlock
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.runtime.processes import gathered
from vmoe_prc.steps.views import merge_views

# Tokens sampled per batch, and batches per split.
TOKENS, BATCHES = 512, 16
_HIGHEST = jax.lax.Precision.HIGHEST


def similarity_table(
    run: OpenedRun, split: str, blocks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compares the experts of each block.

    `weights` is the cosine of the flattened kernels of two experts. It shows what experts with
    equal initial values still share, but depends on the order of the neurons. `outputs` does
    not: linear CKA (Kornblith et al., arXiv 1905.00414) of the outputs of two experts for the
    same tokens, regardless of routing, estimated from parts of batches (Nguyen et al., arXiv
    2010.15327, equation 2).

    Args:
      run: The opened run.
      split: Name of a split.
      blocks: Blocks to measure; all blocks with experts by default.

    Returns:
      One row per block, measure and pair of experts: `block`, `measure`, `expert`, `other`,
      `value`.

    Raises:
      ConfigError: If there is no such split or block.
    """
    split, blocks = run.choose_split(split), run.choose_blocks(blocks)
    outputs = _output_similarity(run, split, blocks)
    rows = []
    for block in blocks:
        weights = weight_similarity(gathered(_expert_params(run.params, block)))
        for measure, values in (("weights", weights), ("outputs", outputs[block])):
            pairs = pair_rows(block, values, ("expert", "other", "value"))
            rows.append(pairs.assign(measure=measure))
    return pd.concat(rows, ignore_index=True)


def weight_similarity(params: Any) -> Float[np.ndarray, "E E"]:
    """Cosines of the kernels of E experts, whose leaves have a leading axis E."""
    kernels = [
        np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    ]
    flat = np.concatenate(kernels, axis=1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T


def hsic(features: Float[Array, "E n D"]) -> Float[Array, "E E"]:
    """Unbiased HSIC of linear kernels between E sets of features of the same n >= 4 tokens.

    Song et al., "Feature Selection via Dependence Maximization" (2012), equation 5.
    """
    n = features.shape[1]
    features = features.astype(jnp.float32)
    kernels = jnp.einsum("eid,ejd->eij", features, features, precision=_HIGHEST)
    kernels *= 1 - jnp.eye(n)
    row_sums = jnp.sum(kernels, axis=2)  # (E, n)
    sums = jnp.sum(row_sums, axis=1)  # (E,)
    traces = jnp.einsum("eij,fij->ef", kernels, kernels, precision=_HIGHEST)
    crossed = jnp.einsum("ei,fi->ef", row_sums, row_sums, precision=_HIGHEST)
    product = sums[:, None] * sums[None] / ((n - 1) * (n - 2))
    return (traces + product - 2 * crossed / (n - 2)) / (n * (n - 3))


def _output_similarity(
    run: OpenedRun, split: str, blocks: Sequence[str]
) -> dict[str, Float[np.ndarray, "E E"]]:
    @functools.partial(jax.jit, out_shardings=replicated(run.mesh))
    def step(params, batch, rows):
        images, _ = merge_views(batch["image"], batch["labels"])
        outputs = expert_outputs(run, params, images, blocks, rows)
        return {block: hsic(values) for block, values in outputs.items()}

    totals = dict.fromkeys(blocks, 0.0)
    with jax.set_mesh(run.mesh):
        for _, batch in zip(range(BATCHES), run.batches(split), strict=False):
            found = jax.device_get(step(run.params, batch, token_rows(run, batch)))
            totals = {block: totals[block] + found[block] for block in blocks}
    similarity = {}
    for block, total in totals.items():
        norm = np.sqrt(np.diag(total))
        similarity[block] = total / (norm[:, None] * norm[None])
    return similarity


def expert_outputs(
    run: OpenedRun,
    params: Any,
    images: Float[Array, "N H W C"],
    blocks: Sequence[str],
    rows: Array,
) -> dict[str, Float[Array, "E n D"]]:
    """Applies all experts of a block to the same tokens.

    Args:
      run: The opened run.
      params: Its parameters.
      images: (N, H, W, C).
      blocks: Blocks with experts.
      rows: (n,) positions of tokens among the N * T of the images.

    Returns:
      (E, n, D) by block.
    """

    def before_experts(module, method):
        return module.name == "LayerNorm_1" and method == "__call__"

    result: Any = run.model.apply(
        {"params": params}, images, capture_intermediates=before_experts, mutable="intermediates"
    )
    captured = cast("tuple[Any, dict[str, Any]]", result)[1]
    mlp_dim = run.config.model.encoder.mlp_dim
    expert = MlpBlock(mlp_dim, deterministic=True, dtype=run.model.dtype)
    outputs = {}
    for block in blocks:
        (tokens,) = captured["intermediates"]["Encoder"][block]["LayerNorm_1"]["__call__"]
        tokens = tokens.reshape(-1, tokens.shape[-1])[rows]
        outputs[block] = jax.vmap(lambda p, x: expert.apply({"params": p}, x), in_axes=(0, None))(
            _expert_params(params, block), tokens
        )
    return outputs


def token_rows(run: OpenedRun, batch: dict[str, jax.Array]) -> np.ndarray:
    """Returns positions of `TOKENS` tokens of a batch, spread evenly over its images."""
    *views, height, width, _ = batch["image"].shape[1:]
    patch_height, patch_width = run.config.model.patch_size
    tokens = (height // patch_height) * (width // patch_width) + run.class_token
    per_image = tokens * (2 if views else 1)
    images = np.flatnonzero(gathered(batch["mask"]))
    rows = (images[:, None] * per_image + np.arange(per_image)).ravel()
    return rows[np.linspace(0, len(rows) - 1, min(TOKENS, len(rows))).astype(np.int64)]


def _expert_params(params: Any, block: str) -> Any:
    return params["Encoder"][block]["Moe"]["Mlp"]
