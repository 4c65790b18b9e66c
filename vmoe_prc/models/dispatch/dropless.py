"""Experts without capacity: every choice of every token is computed, none is dropped.

The rows of the tokens' choices are sorted by expert, and the experts' layers are grouped
matrix products (MegaBlocks, arXiv 2211.15841). How many rows each expert gets is known only at
run time, but shapes are static. So with experts split over devices, the devices of a row of the
`expert` axis gather all tokens of the row, compute the choices of their own experts, and the
results are summed and scattered: this sends more than an all-to-all, and leaves room for the
case that all tokens choose the experts of one device.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch.method import DispatchMethod, Experts
from vmoe_prc.models.dispatch.plan import Dispatcher, DispatcherOptions
from vmoe_prc.models.grouped_matmul import grouped_product
from vmoe_prc.models.permutation import Permutation, permute, unpermute
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


@DISPATCHERS.register("dropless", options=DispatcherOptions)
class Dropless(DispatchMethod):
    """Sorts the choices by expert; slots number the choices of a group and expert."""

    has_capacity = False

    @classmethod
    def apply(
        cls, plan: Dispatcher, x: Float[Array, "G S D"], experts: Experts
    ) -> Float[Array, "G S D"]:
        """Applies each token's experts and sums their outputs with its weights."""

        def local(plan, x, params, key):
            # Devices of a column share the parameters: their gradients are summed over it.
            params = jax.tree.map(lambda p: _vary(p, experts), params)
            sent = jnp.bfloat16 if plan.options.bfloat16 else x.dtype
            # A choice of weight 0 goes to no expert.
            chosen = jnp.where(plan.kept, plan.experts, plan.num_experts)
            x, chosen, slots, weights = (
                all_gather(a, EXPERTS) for a in (x.astype(sent), chosen, plan.slots, plan.weights)
            )
            num_local = len(params["Dense_0"]["bias"])
            rows, tiles = _sort_by_expert(chosen, slots, plan.num_experts, num_local)
            inputs = permute(x.reshape(-1, x.shape[-1]).astype(experts.dtype), rows)
            outputs = _mlp(inputs, tiles, params, experts.gelu, _dropout(experts.dropout_rate, key))
            tokens = unpermute(outputs, weights.reshape(rows.of_choice.shape), rows)
            return sum_scatter(tokens.reshape(x.shape).astype(sent), EXPERTS)

        specs = (BATCH, BATCH, EXPERTS, REPLICATED)
        with jax.named_scope("dropless"):
            return on_each_device(local, specs, BATCH)(
                plan, x, experts.params(), experts.dropout_key()
            )


def _vary(param: Array, experts: Experts) -> Array:
    """Casts a parameter; its gradient is summed over `data` before or after the cast of it."""
    if experts.float32_gradients:
        return vary_over_data(param).astype(experts.dtype)
    return vary_over_data(param.astype(experts.dtype))


def _sort_by_expert(
    experts: Int[Array, "G S K"], slots: Int[Array, "G S K"], num_experts: int, num_local: int
) -> tuple[Permutation, Tiles]:
    """Sorts the choices of the experts of this device by expert, group and slot.

    Args:
      experts: Expert of each choice.
      slots: Number of each choice among the choices of its group and expert.
      num_experts: E.
      num_local: L, the number of experts of this device.

    Returns:
      The rows of the choices, none for choices of experts of other devices; and the tiles of
      the experts of this device, each of which begins with a new tile.
    """
    # Here and below `.shape[0]`, not `len`: an exported program has any number of groups.
    chosen = experts.reshape(experts.shape[0], -1, 1) == jnp.arange(num_experts)
    counts = jnp.sum(chosen, axis=1, dtype=jnp.int32)  # (G, E)
    # The experts of this device are consecutive: keep their columns of the counts.
    first = expert_index() * num_local
    sizes = jax.lax.dynamic_slice(jnp.sum(counts, axis=0), (first,), (num_local,))
    local = experts - first
    is_local = (local >= 0) & (local < num_local)
    local = jnp.clip(local, 0, num_local - 1)
    # A choice's row: after the tiles of earlier experts, and the choices of earlier groups.
    before = jnp.cumsum(counts, axis=0) - counts  # Choices of the same expert in earlier groups.
    before = jax.lax.dynamic_slice(before, (0, first), (counts.shape[0], num_local))
    tiles = Tiles.create(sizes, experts.size)
    num_rows = tiles.group.shape[0] * TILE
    start = tiles.first * TILE + before  # (G, L)
    row = jnp.take_along_axis(start[:, None], local, axis=2) + slots
    row = jnp.where(is_local, row, num_rows).reshape(-1, experts.shape[-1])
    return Permutation.create(row, num_rows), tiles


def _mlp(
    rows: Float[Array, "R D"],
    tiles: Tiles,
    params: Mapping[str, Any],
    gelu: str,
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

    hidden = jax.nn.gelu(dense(rows, "Dense_0"), approximate=gelu == "tanh")
    hidden = dropout(hidden, 0)
    return dropout(dense(hidden, "Dense_1"), 1)


def _dropout(rate: float, key: jax.Array | None) -> Callable[[jax.Array, int], jax.Array]:
    if key is None or rate == 0:
        return lambda x, layer: x
    key = device_key(key)

    def dropout(x, layer):
        kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return dropout
