"""Sends tokens to the buffers of their experts and brings the results back.

Letters: G groups of S tokens are routed independently of each other; each token has K
choices among E experts; an expert has C buffer slots per group.

A `Dispatcher` is a plan, the same for every method: the expert and the buffer slot of
each choice of each token. The methods differ in how they move the data:

* `einsum` multiplies by one-hot masks (G, S, E, C), as in the V-MoE paper: friendly to
  matrix units, but its cost grows with S * E * C.
* `gather` moves rows by their indices, forward and backward: the cost is that of a copy.
* `dropless` has no buffers, and capacity does not matter: see `dropless.apply_experts`.
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int, Leaf
from vmoe_prc.models.permutation import RowMap, collect, spread
from vmoe_prc.runtime.mesh import BATCH, EXPERT_BUFFERS, all_to_all, on_each_device

DROPLESS = "dropless"


@flax.struct.dataclass
class Dispatcher:
    """Where each choice of each token goes, and how to move the data there and back.

    Attributes:
      experts: (G, S, K) int32, expert of each choice.
      slots: (G, S, K) int32, slot in the expert's buffer; C or more if dropped.
      weights: (G, S, K) float32, weight of each choice in the token's output.
      num_experts: E.
      capacity: C.
      method: Name of the method that moves the data.
      bfloat16: Whether the data travels as bfloat16, to save bandwidth.
    """

    experts: Leaf
    slots: Leaf
    weights: Leaf
    num_experts: int = flax.struct.field(pytree_node=False)
    capacity: int = flax.struct.field(pytree_node=False)
    method: str = flax.struct.field(pytree_node=False, default="gather")
    bfloat16: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def kept(self) -> Bool[Array, "G S K"]:
        """Choices that found a free slot."""
        return self.slots < self.capacity

    def dispatch(self, x: Float[Array, "G S D"]) -> Float[Array, "E GC D"]:
        """Copies each token into the buffers of its experts; free slots hold zeros."""
        send = on_each_device(_send, (BATCH, BATCH), EXPERT_BUFFERS)
        with jax.named_scope("dispatch"):
            return send(self, x)

    def combine(self, y: Float[Array, "E GC D"]) -> Float[Array, "G S D"]:
        """Sums the experts' outputs of each token, weighted; dropped choices give zero."""
        receive = on_each_device(_receive, (BATCH, EXPERT_BUFFERS), BATCH)
        with jax.named_scope("combine"):
            return receive(self, y)


def top_experts_per_item(
    gates: Float[Array, "G S E"],
    num_selected_experts: int,
    capacity_factor: float,
    batch_priority: bool = False,
    method: str = "gather",
    bfloat16: bool = False,
) -> Dispatcher:
    """Sends each token to its K experts of the largest gates (arXiv 2106.05974).

    All first choices take their slots before all second choices, and so on; within a
    rank tokens go in their order, or by decreasing largest gate with `batch_priority`
    (Batch Prioritized Routing). The gates of the chosen experts weigh their outputs as they are.

    Args:
      gates: (G, S, E) routing weights.
      num_selected_experts: K.
      capacity_factor: Buffer size relative to S * K / E.
      batch_priority: Whether tokens with a larger first gate take their slots first.
      method: How the data is moved: 'einsum', 'gather', or 'dropless', which leaves the
        capacity out of account.
      bfloat16: Whether the data travels as bfloat16.

    Raises:
      ValueError: If K is not in [1, E], or the method is unknown.
    """
    _, group_size, num_experts = gates.shape
    if not 1 <= num_selected_experts <= num_experts:
        raise ValueError(
            f"num_selected_experts = {num_selected_experts} must be between 1 and "
            f"num_experts = {num_experts}"
        )
    _check_method(method, {*METHODS, DROPLESS})
    capacity = compute_capacity(group_size * num_selected_experts, num_experts, capacity_factor)
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(gates), num_selected_experts)
    chosen = experts[..., None] == jnp.arange(num_experts)  # (G, S, K, E)
    weights = jnp.sum(jnp.where(chosen, gates[:, :, None, :], 0), axis=-1)
    return Dispatcher(
        experts=experts,
        slots=_slots(chosen, weights[..., 0] if batch_priority else None),
        weights=weights,
        num_experts=num_experts,
        # A token chooses an expert once at most.
        capacity=group_size if method == DROPLESS else capacity,
        method=method,
        bfloat16=bfloat16,
    )


def top_items_per_expert(
    gates: Float[Array, "G S E"],
    capacity_factor: float,
    method: str = "gather",
    bfloat16: bool = False,
) -> Dispatcher:
    """Sends each expert the C tokens of its largest gates (Expert Choice routing).

    In the returned plan every token has K = E choices, in the order of its gates, and
    keeps those whose expert took it.

    Args:
      gates: (G, S, E) routing weights.
      capacity_factor: Buffer size relative to S / E; at most all S tokens are taken.
      method: How the data is moved: 'einsum' or 'gather'. The capacity is what this router is
        about, so there is no 'dropless'.
      bfloat16: Whether the data travels as bfloat16.

    Raises:
      ValueError: If the method is unknown.
    """
    num_groups, group_size, num_experts = gates.shape
    _check_method(method, METHODS)
    capacity = min(compute_capacity(group_size, num_experts, capacity_factor), group_size)
    fixed = jax.lax.stop_gradient(gates)
    _, tokens = jax.lax.top_k(jnp.swapaxes(fixed, 1, 2), capacity)  # (G, E, C)
    group = jnp.arange(num_groups)[:, None, None]
    expert = jnp.arange(num_experts)[:, None]
    slots = jnp.full(gates.shape, capacity, jnp.int32)
    slots = slots.at[group, tokens, expert].set(
        jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), tokens.shape)
    )
    _, experts = jax.lax.top_k(fixed, num_experts)
    return Dispatcher(
        experts=experts,
        slots=jnp.take_along_axis(slots, experts, axis=-1),
        weights=jnp.take_along_axis(gates, experts, axis=-1),
        num_experts=num_experts,
        capacity=capacity,
        method=method,
        bfloat16=bfloat16,
    )


def compute_capacity(num_choices: int, num_experts: int, capacity_factor: float) -> int:
    """Returns C = ceil(num_choices * capacity_factor / E), up to a multiple of 4.

    Args:
      num_choices: Choices to place in a group: S * K, or S for Expert Choice.
      num_experts: E.
      capacity_factor: Slots relative to perfectly balanced choices.

    Raises:
      ValueError: If the capacity factor is not positive.
    """
    if capacity_factor <= 0:
        raise ValueError(f"capacity_factor = {capacity_factor} must be positive")
    return 4 * math.ceil(math.ceil(num_choices * capacity_factor / num_experts) / 4)


def _check_method(method: str, allowed: Collection[str]):
    if method not in allowed:
        raise ValueError(
            f"unknown dispatch method {method!r}; allowed: {', '.join(sorted(allowed))}"
        )


def _slots(
    chosen: Bool[Array, "G S K E"], priority: Float[Array, "G S"] | None
) -> Int[Array, "G S K"]:
    """Numbers the choices of each expert, by rank first and token order second."""
    num_groups, group_size, num_selected, num_experts = chosen.shape
    chosen = chosen.astype(jnp.int32)
    if priority is not None:
        order = jnp.argsort(-priority, axis=1, stable=True)
        chosen = jnp.take_along_axis(chosen, order[:, :, None, None], axis=1)
    ranked = jnp.swapaxes(chosen, 1, 2)  # (G, K, S, E): ranks outermost.
    queue = ranked.reshape(num_groups, num_selected * group_size, num_experts)
    position = jnp.cumsum(queue, axis=1).reshape(ranked.shape) - 1
    slots = jnp.swapaxes(jnp.sum(position * ranked, axis=-1), 1, 2)  # (G, S, K)
    if priority is not None:
        slots = jnp.take_along_axis(slots, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return slots


def _send(plan: Dispatcher, x: jax.Array) -> jax.Array:
    """Sends the tokens (G, S, D) of a device to where their experts are: (E, G*C, D)."""
    sent = x.astype(jnp.bfloat16) if plan.bfloat16 else x
    buffers = METHODS[plan.method].dispatch(plan, sent)
    buffers = all_to_all(buffers, split_axis=0, concat_axis=1)  # (E, G, C, D)
    return buffers.reshape(buffers.shape[0], -1, buffers.shape[-1]).astype(x.dtype)


def _receive(plan: Dispatcher, y: jax.Array) -> jax.Array:
    """Returns the experts' outputs (E, G*C, D) to the tokens of a device: (G, S, D)."""
    sent = y.astype(jnp.bfloat16) if plan.bfloat16 else y
    buffers = sent.reshape(sent.shape[0], -1, plan.capacity, sent.shape[-1])
    buffers = all_to_all(buffers, split_axis=1, concat_axis=0)  # (E, G, C, D)
    return METHODS[plan.method].combine(plan, buffers).astype(y.dtype)


class _Method(NamedTuple):
    """A way to move data: (G, S, D) -> (E, G, C, D) and back."""

    dispatch: Callable[[Dispatcher, jax.Array], jax.Array]
    combine: Callable[[Dispatcher, jax.Array], jax.Array]


def _one_hot_masks(plan: Dispatcher) -> tuple[jax.Array, jax.Array]:
    """Returns the slots taken (G, S, E, C), as booleans, and gates (G, S, E)."""
    chosen = plan.experts[..., None] == jnp.arange(plan.num_experts)  # (G, S, K, E)
    slot_of_expert = jnp.max(jnp.where(chosen, plan.slots[..., None], -1), axis=2)
    mask = slot_of_expert[..., None] == jnp.arange(plan.capacity)
    gates = jnp.sum(jnp.where(chosen, plan.weights[..., None], 0), axis=2)
    return mask, gates


def _einsum_dispatch(plan: Dispatcher, x: jax.Array) -> jax.Array:
    mask, _ = _one_hot_masks(plan)
    return jnp.einsum("GSEC,GSD->EGCD", mask.astype(x.dtype), x)


def _einsum_combine(plan: Dispatcher, y: jax.Array) -> jax.Array:
    mask, gates = _one_hot_masks(plan)
    weights = jnp.where(mask, gates[..., None], 0).astype(y.dtype)
    return jnp.einsum("GSEC,EGCD->GSD", weights, y)


def _gather_dispatch(plan: Dispatcher, x: jax.Array) -> jax.Array:
    size = x.shape[-1]
    rows = spread(x.reshape(-1, size), _rows(plan))
    return rows.reshape(plan.num_experts, -1, plan.capacity, size)


def _gather_combine(plan: Dispatcher, y: jax.Array) -> jax.Array:
    size = y.shape[-1]
    weights = plan.weights.reshape(-1, plan.weights.shape[-1])
    tokens = collect(y.reshape(-1, size), weights, _rows(plan))
    return tokens.reshape(*plan.experts.shape[:2], size)


def _rows(plan: Dispatcher) -> RowMap:
    """Returns the rows of the buffers (E, G, C) that the choices have."""
    num_groups, _, num_selected = plan.experts.shape
    num_rows = plan.num_experts * num_groups * plan.capacity
    group = jnp.arange(num_groups, dtype=jnp.int32)[:, None, None]
    row = (plan.experts * num_groups + group) * plan.capacity + plan.slots
    row = jnp.where(plan.kept, row, num_rows)
    return RowMap.create(row.reshape(-1, num_selected), num_rows)


METHODS: dict[str, _Method] = {
    "einsum": _Method(_einsum_dispatch, _einsum_combine),
    "gather": _Method(_gather_dispatch, _gather_combine),
}
