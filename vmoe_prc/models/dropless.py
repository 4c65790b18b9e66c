"""Experts without capacity: every choice of every token is computed, none is dropped.

The rows of the tokens' choices are sorted by expert, and the experts' layers are grouped
matrix products (MegaBlocks, arXiv 2211.15841). What each expert gets is known only when it
is computed, but shapes are static. So with experts split over devices, the devices of a row
of the `expert` axis gather all tokens of the row, compute the choices of their own experts,
and the results are summed and scattered: more is sent than by an all-to-all, and there is
room for the case that all tokens choose the experts of one device.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.models.dispatch import Dispatcher
from vmoe_prc.models.grouped_matmul import grouped_product
from vmoe_prc.models.permutation import RowMap, collect, spread
from vmoe_prc.models.tiles import TILE, Tiles
from vmoe_prc.runtime.mesh import (
    BATCH,
    EXPERTS,
    REPLICATED,
    all_gather,
    device_key,
    expert_index,
    on_each_device,
    sum_scatter,
    vary_over_data,
)


def apply_experts(
    plan: Dispatcher,
    x: Float[Array, "G S D"],
    params: Mapping[str, Any],
    dtype: Any,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "G S D"]:
    """Applies the experts' MLPs to the tokens that chose them, and sums by the weights.

    Args:
      plan: Who chose whom; its slots number the choices of each group and expert.
      x: (G, S, D) tokens.
      params: Parameters of `MlpBlock` with a leading axis of E experts.
      dtype: Dtype of the computation.
      dropout_rate: Dropout after either layer.
      dropout_key: Key of the dropout, None for no dropout. A device draws its own.
    """

    def local(plan, x, params, key):
        # The gradient of what all devices of a column share is summed over them.
        params = jax.tree.map(lambda p: vary_over_data(p.astype(dtype)), params)
        sent = jnp.bfloat16 if plan.bfloat16 else x.dtype
        x, experts, slots, weights = (
            all_gather(a, EXPERTS) for a in (x.astype(sent), plan.experts, plan.slots, plan.weights)
        )
        rows, tiles = _sort(experts, slots, plan.num_experts, len(params["Dense_0"]["bias"]))
        inputs = spread(x.reshape(-1, x.shape[-1]).astype(dtype), rows)
        outputs = _mlp(inputs, tiles, params, _dropout(dropout_rate, key))
        tokens = collect(outputs, weights.reshape(rows.of_choice.shape), rows)
        return sum_scatter(tokens.reshape(x.shape).astype(sent))

    specs = (BATCH, BATCH, EXPERTS, REPLICATED)
    with jax.named_scope("dropless"):
        return on_each_device(local, specs, BATCH)(plan, x, params, dropout_key)


def _sort(
    experts: Int[Array, "G S K"], slots: Int[Array, "G S K"], num_experts: int, num_local: int
) -> tuple[RowMap, Tiles]:
    """Gives the choices rows, sorted by expert, group and slot; those of others get none.

    Returns:
      The rows of the choices of the experts of this device, and the tiles of these experts.
    """
    chosen = experts.reshape(len(experts), -1, 1) == jnp.arange(num_experts)
    counts = jnp.sum(chosen, axis=1, dtype=jnp.int32)  # (G, E)
    first = expert_index() * num_local
    sizes = jax.lax.dynamic_slice(jnp.sum(counts, axis=0), (first,), (num_local,))
    local = experts - first
    is_local = (local >= 0) & (local < num_local)
    local = jnp.clip(local, 0, num_local - 1)
    before = jnp.cumsum(counts, axis=0) - counts  # Choices of the same expert in earlier groups.
    before = jax.lax.dynamic_slice(before, (0, first), (len(counts), num_local))
    tiles = Tiles.create(sizes, experts.size)
    num_rows = len(tiles.group) * TILE
    start = tiles.first * TILE + before  # (G, L)
    row = jnp.take_along_axis(start[:, None], local, axis=2) + slots
    row = jnp.where(is_local, row, num_rows).reshape(-1, experts.shape[-1])
    return RowMap.create(row, num_rows), tiles


def _mlp(
    rows: Float[Array, "R D"],
    tiles: Tiles,
    params: Mapping[str, Any],
    dropout: Callable[[jax.Array, int], jax.Array],
) -> Float[Array, "R D"]:
    """`MlpBlock` of each row's expert."""
    # As a product, the gradient of the biases is one as well, and no scatter.
    expert = jax.nn.one_hot(tiles.group, len(tiles.count), dtype=rows.dtype)  # (T, L)

    def dense(x, name):
        layer = params[name]
        products = grouped_product(x, layer["kernel"], tiles)
        biases = jnp.repeat(expert @ layer["bias"], TILE, axis=0)
        return products + biases

    hidden = dropout(jax.nn.gelu(dense(rows, "Dense_0")), 0)
    return dropout(dense(hidden, "Dense_1"), 1)


def _dropout(rate: float, key: jax.Array | None) -> Callable[[jax.Array, int], jax.Array]:
    if key is None or rate == 0:
        return lambda x, layer: x
    key = device_key(key)

    def dropout(x, layer):
        kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return dropout
