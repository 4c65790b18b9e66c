"""Experts without capacity: every choice of every token is computed, none is dropped.

The rows of the tokens' choices are sorted by expert, and the experts' layers are grouped
matrix products (MegaBlocks, arXiv 2211.15841). How many rows each expert gets is known only at
run time, but shapes are static. So with experts split over devices, the devices of a row of the
`expert` axis gather all tokens of the row, compute the choices of their own experts, and the
results are summed and scattered: this sends more than an all-to-all, and leaves room for the
case that all tokens choose the experts of one device. With a bound on the choices that a device
takes, a ragged all-to-all sends each choice to the device of its expert and its output back.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch.exchange import exchange
from vmoe_prc.models.dispatch.method import DispatchMethod, Experts
from vmoe_prc.models.dispatch.plan import Dispatcher, DispatcherOptions, number_choices
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
    vary,
    vary_over_data,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DroplessOptions(DispatcherOptions):
    """Options of `dropless`."""

    device_capacity_factor: float | None = option(
        None,
        "Choices that a device takes at most, relative to balanced choices, others being dropped: "
        "tokens then go only to the devices of their experts; None for all tokens to all devices "
        "of a row, and no choice dropped.",
        minimum=1.0,
    )


@DISPATCHERS.register("dropless", options=DroplessOptions)
class Dropless(DispatchMethod):
    """Sorts the choices by expert; slots number the choices of a group and expert."""

    has_capacity = False

    @classmethod
    def limit(cls, plan: Dispatcher) -> Dispatcher:
        """Drops choices beyond the bound of a device.

        Devices take the choices of the first devices of the row first, and of each device all
        first choices before all second ones. Called on each device, as the routers are.
        """
        partitions = _partitions()
        if partitions == 1 or _factor(plan) is None:
            return plan

        experts = plan.experts.reshape(-1, plan.experts.shape[-1])
        device = experts // (plan.num_experts // partitions)
        device = jnp.where(plan.kept.reshape(experts.shape), device, partitions)
        chosen = device[..., None] == jnp.arange(partitions)  # (N, K, P)
        counts = all_gather(_counts(chosen)[None], EXPERTS)  # (P, P): from, to
        room = _bound(plan, experts.size) - (jnp.cumsum(counts, axis=0) - counts)
        is_taken = _numbers(chosen) < jnp.sum(chosen * room[expert_index()], axis=-1)
        is_taken = is_taken.reshape(plan.slots.shape)
        return dataclasses.replace(plan, slots=jnp.where(is_taken, plan.slots, plan.capacity))

    @classmethod
    def apply(
        cls, plan: Dispatcher, x: Float[Array, "G S D"], experts: Experts
    ) -> Float[Array, "G S D"]:
        """Applies each token's experts and sums their outputs with its weights."""
        ragged = _partitions() > 1 and _factor(plan) is not None
        move = _to_devices_of_experts if ragged else _to_all_devices

        def local(plan, x, params, key):
            # Devices of a column share the parameters: their gradients are summed over it.
            params = jax.tree.map(lambda p: _vary(p, experts), params)
            dropout = _dropout(experts.dropout_rate, key)

            def mlp(rows, tiles):
                return _mlp(rows.astype(experts.dtype), tiles, params, experts.gelu, dropout)

            sent = jnp.bfloat16 if plan.options.bfloat16 else x.dtype
            return move(plan, x.astype(sent), mlp, len(params["Dense_0"]["bias"]))

        specs = (BATCH, BATCH, EXPERTS, REPLICATED)
        with jax.named_scope("dropless"):
            return on_each_device(local, specs, BATCH)(
                plan, x, experts.params(), experts.dropout_key()
            )


# Computes the rows of experts that are laid out in tiles.
_Mlp = Callable[[Array, Tiles], Array]


def _to_all_devices(
    plan: Dispatcher, x: Float[Array, "G S D"], mlp: _Mlp, num_local: int
) -> Float[Array, "G S D"]:
    """Gathers the tokens of the row; sums and scatters what the devices make of them."""
    # A choice of weight 0 goes to no expert.
    chosen = jnp.where(plan.kept, plan.experts, plan.num_experts)
    sent = x.dtype
    x, chosen, slots, weights = (
        all_gather(a, EXPERTS) for a in (x, chosen, plan.slots, plan.weights)
    )
    rows, tiles = _sort_by_expert(chosen, slots, plan.num_experts, num_local)
    outputs = mlp(permute(x.reshape(-1, x.shape[-1]), rows), tiles)
    tokens = unpermute(outputs, weights.reshape(rows.of_choice.shape), rows)
    return sum_scatter(tokens.reshape(x.shape).astype(sent), EXPERTS)


def _to_devices_of_experts(
    plan: Dispatcher, x: Float[Array, "G S D"], mlp: _Mlp, num_local: int
) -> Float[Array, "G S D"]:
    """Sends each choice to the device of its expert, and the output back."""
    partitions, num_choices = plan.num_experts // num_local, plan.experts.size
    bound = _bound(plan, num_choices)
    experts = jnp.where(plan.kept, plan.experts, plan.num_experts)
    experts = experts.reshape(-1, experts.shape[-1])
    chosen = experts[..., None] == jnp.arange(plan.num_experts)  # (N, K, E)
    own = _counts(chosen)
    # Choices lie by expert, and so by device.
    first = jnp.sum(jnp.where(chosen, jnp.cumsum(own) - own, 0), axis=-1)
    place = jnp.where(experts < plan.num_experts, first + _numbers(chosen), num_choices)
    rows = Permutation.create(place, num_choices)
    counts = all_gather(own[None], EXPERTS)  # (P, E)
    sizes = jnp.sum(counts.reshape(partitions, partitions, num_local), axis=-1)
    taken = exchange(permute(x.reshape(-1, x.shape[-1]), rows), sizes, bound)
    here = jax.lax.dynamic_slice_in_dim(counts, expert_index() * num_local, num_local, axis=1)
    sorted_rows, tiles = _sort_blocks(here, bound)
    outputs = mlp(permute(taken, sorted_rows), tiles)
    ones = jnp.ones((bound, 1), jnp.float32)
    outputs = unpermute(outputs, vary(ones), sorted_rows, x.dtype)
    outputs = exchange(outputs, sizes, num_choices, True)
    weights = plan.weights.reshape(experts.shape)
    return unpermute(outputs, weights, rows, x.dtype).reshape(x.shape)


def _partitions() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["expert"]


def _factor(plan: Dispatcher) -> float | None:
    return getattr(plan.options, "device_capacity_factor", None)


def _bound(plan: Dispatcher, num_choices: int) -> int:
    """Returns how many choices a device takes at most, if each has as many."""
    return math.ceil(min(_factor(plan) or 1.0, _partitions()) * num_choices)


def _numbers(chosen: Bool[Array, "N K X"]) -> Int[Array, "N K"]:
    """Numbers the choices of each column from 0, all first choices before all second ones."""
    return number_choices(chosen[None], None, None, 0)[0]


def _counts(chosen: Bool[Array, "N K X"]) -> Int[Array, " X"]:
    return jnp.sum(chosen, axis=(0, 1), dtype=jnp.int32)


def _sort_blocks(counts: Int[Array, "P L"], num_rows: int) -> tuple[Permutation, Tiles]:
    """Sorts rows, that lie by device and expert, by expert and device.

    Args:
      counts: Rows of each device and expert.
      num_rows: Rows that there is room for.

    Returns:
      The places of the rows among those in tiles, and the tiles of the experts.
    """
    sizes = counts.reshape(-1)
    ends = jnp.cumsum(sizes)
    tiles = Tiles.create(jnp.sum(counts, axis=0), num_rows)
    start = tiles.first * TILE + jnp.cumsum(counts, axis=0) - counts  # (P, L)
    row = jnp.arange(num_rows, dtype=jnp.int32)
    block = jnp.sum(row[:, None] >= ends, axis=1)
    num_sorted = tiles.group.shape[0] * TILE
    moved = (start.reshape(-1) - (ends - sizes)).at[block].get(mode="clip")
    place = jnp.where(row < ends[-1], row + moved, num_sorted)
    return Permutation.create(place[:, None], num_sorted), tiles


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
