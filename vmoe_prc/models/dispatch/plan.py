"""Plans: which tokens go to which expert, and into which slot of its buffer."""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int, Leaf
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch.method import Experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class DispatcherOptions:
    """Options of every dispatch method; one of your own adds its fields in a subclass."""

    capacity_factor: float = option(
        1.05, "Slots of an expert relative to perfectly balanced choices.", above=0.0
    )
    capacity_ceil_or_round: str = option(
        "ceil",
        "Whether the number of slots is rounded up or to the nearest integer.",
        choices=("ceil", "round"),
    )
    capacity_multiple_of: int | None = option(
        4,
        "Number of which the slots are made a multiple, by adding some; None for any number.",
        minimum=1,
    )
    batch_priority: bool = option(
        False,
        "Whether tokens with a larger first gate take their slots first (Batch Prioritized "
        "Routing); only where tokens choose experts.",
    )
    bfloat16: bool = option(
        False, "Whether tokens travel to the experts and back as bfloat16, to save bandwidth."
    )


DEFAULTS = DispatcherOptions()


@flax.struct.dataclass
class Dispatcher:
    """The slot of each choice of each token, and the way to move data there and back.

    Attributes:
      experts: (G, S, K) int32, expert of each choice.
      slots: (G, S, K) int32, slot in the expert's buffer; C or more if dropped.
      weights: (G, S, K) float32, weight of each choice in the token's output.
      num_experts: E.
      capacity: C.
      method: Name of the method that moves the data.
      options: Options of the method.
    """

    experts: Leaf
    slots: Leaf
    weights: Leaf
    num_experts: int = flax.struct.field(pytree_node=False)
    capacity: int = flax.struct.field(pytree_node=False)
    method: str = flax.struct.field(pytree_node=False, default="gather")
    options: DispatcherOptions = flax.struct.field(pytree_node=False, default=DEFAULTS)

    @property
    def kept(self) -> Bool[Array, "G S K"]:
        """Choices that found a free slot."""
        return self.slots < self.capacity

    def apply(self, x: Float[Array, "G S D"], experts: Experts) -> Float[Array, "G S D"]:
        """Applies each token's experts and sums their outputs with its weights."""
        return DISPATCHERS[self.method].apply(self, x, experts)

    def dispatch(self, x: Float[Array, "G S D"]) -> Float[Array, "E GC D"]:
        """Copies each token into the buffers of its experts; free slots hold zeros."""
        return DISPATCHERS[self.method].dispatch(self, x)

    def combine(self, y: Float[Array, "E GC D"]) -> Float[Array, "G S D"]:
        """Sums the experts' outputs of each token, weighted; dropped choices give zero."""
        return DISPATCHERS[self.method].combine(self, y)


def top_experts_per_item(
    gates: Float[Array, "G S E"],
    num_selected_experts: int,
    method: str = "gather",
    options: DispatcherOptions = DEFAULTS,
    mask: Bool[Array, "G S"] | None = None,
    scores: Float[Array, "G S E"] | None = None,
    mean_selected: float | None = None,
) -> Dispatcher:
    """Sends each token to its K experts of the largest gates (arXiv 2106.05974).

    All first choices take their slots before all second choices, and so on; within a
    rank tokens go in their order, or by decreasing largest gate with `batch_priority`
    (Batch Prioritized Routing). The gates of the chosen experts weigh their outputs as they are.

    Args:
      gates: (G, S, E) routing weights.
      num_selected_experts: K.
      method: Name of the dispatch method.
      options: Options of the method; its capacity factor is relative to S * K / E.
      mask: (G, S) bool, False for tokens that take no slot, such as tokens of rows that fill
        up a batch; None if there are none. A method without capacity ignores it.
      scores: (G, S, E), the largest of which choose the experts; the gates if None.
      mean_selected: Experts that a token uses on average, for routers that give some of their K
        choices the weight 0: these take no slot, and capacity is for this number. None if all K
        are used.

    Raises:
      ValueError: If K is not in [1, E], or the method is unknown.
    """
    _, group_size, num_experts = gates.shape
    if not 1 <= num_selected_experts <= num_experts:
        raise ValueError(
            f"num_selected_experts = {num_selected_experts} must be between 1 and "
            f"num_experts = {num_experts}"
        )
    scores = gates if scores is None else scores
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(scores), num_selected_experts)
    chosen = experts[..., None] == jnp.arange(num_experts)  # (G, S, K, E)
    weights = jnp.sum(jnp.where(chosen, gates[:, :, None, :], 0), axis=-1)
    priority = weights[..., 0] if options.batch_priority else None
    used = None
    if mean_selected is not None:
        used = jax.lax.stop_gradient(weights) > 0
        chosen &= used[..., None]
    if DISPATCHERS[method].has_capacity:
        selected = mean_selected or num_selected_experts
        capacity = buffer_capacity(group_size, selected, num_experts, options)
        slots = number_choices(chosen, priority, mask, capacity)
    else:
        capacity = group_size  # A token chooses an expert once at most.
        slots = number_choices(chosen, priority, None, capacity)
    slots = slots if used is None else jnp.where(used, slots, capacity)
    plan = Dispatcher(
        experts=experts,
        slots=slots,
        weights=weights,
        num_experts=num_experts,
        capacity=capacity,
        method=method,
        options=options,
    )
    return DISPATCHERS[method].limit(plan)


def top_items_per_expert(
    gates: Float[Array, "G S E"],
    method: str = "gather",
    options: DispatcherOptions = DEFAULTS,
    mask: Bool[Array, "G S"] | None = None,
    scores: Float[Array, "G S E"] | None = None,
) -> Dispatcher:
    """Sends each expert the C tokens of its largest gates (Expert Choice routing).

    In the returned plan every token has K = E choices, in the order of its gates, and
    keeps those whose expert took it.

    Args:
      gates: (G, S, E) routing weights.
      method: Name of a dispatch method with capacity, which is what this router is about.
      options: Options of the method; its capacity factor is relative to S / E, and at most
        all S tokens are taken.
      mask: (G, S) bool, False for tokens that no expert takes; None if there are none.
      scores: (G, S, E), by the largest of which experts choose; the gates if None.

    Raises:
      ValueError: If the method is unknown or has no capacity, or tokens are to have priority.
    """
    num_groups, group_size, num_experts = gates.shape
    if not DISPATCHERS[method].has_capacity:
        raise ValueError(
            f"dispatcher.name = {method!r} has no capacity, which experts that choose their "
            "tokens need; use 'gather'"
        )
    if options.batch_priority:
        raise ValueError(
            "dispatcher.batch_priority = True orders tokens that choose experts; here experts "
            "choose tokens"
        )
    capacity = buffer_capacity(group_size, 1, num_experts, options)
    fixed = jax.lax.stop_gradient(gates if scores is None else scores)
    scores = fixed if mask is None else jnp.where(mask[..., None], fixed, -jnp.inf)
    _, tokens = jax.lax.top_k(jnp.swapaxes(scores, 1, 2), capacity)  # (G, E, C)
    group = jnp.arange(num_groups)[:, None, None]
    expert = jnp.arange(num_experts)[:, None]
    slots = jnp.full(gates.shape, capacity, jnp.int32)
    slots = slots.at[group, tokens, expert].set(
        jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), tokens.shape)
    )
    if mask is not None:  # An expert with more slots than tokens has taken masked ones, too.
        slots = jnp.where(mask[..., None], slots, capacity)
    _, experts = jax.lax.top_k(fixed, num_experts)
    return Dispatcher(
        experts=experts,
        slots=jnp.take_along_axis(slots, experts, axis=-1),
        weights=jnp.take_along_axis(gates, experts, axis=-1),
        num_experts=num_experts,
        capacity=capacity,
        method=method,
        options=options,
    )


def compute_capacity(
    num_choices: float,
    num_experts: int,
    capacity_factor: float,
    ceil_or_round: str = "ceil",
    multiple_of: int | None = 4,
) -> int:
    """Returns num_choices * capacity_factor / E as an integer, up to a multiple.

    Args:
      num_choices: Choices to place in a group: S * K, or S for Expert Choice.
      num_experts: E.
      capacity_factor: Slots relative to perfectly balanced choices.
      ceil_or_round: 'ceil' or 'round', what makes it an integer.
      multiple_of: Number of which the result is a multiple; None for any.

    Raises:
      ValueError: If the capacity factor is not positive, or no slot is left.
    """
    if capacity_factor <= 0:
        raise ValueError(f"capacity_factor = {capacity_factor} must be positive")
    slots = num_choices * capacity_factor / num_experts
    capacity = math.ceil(slots) if ceil_or_round == "ceil" else round(slots)
    if capacity < 1:
        raise ValueError(
            f"capacity_factor = {capacity_factor} gives an expert {slots:.2g} slots for "
            f"{num_choices} choices of {num_experts} experts, which rounds to none"
        )
    return capacity + -capacity % (multiple_of or 1)


def buffer_capacity(
    group_size: int, num_selected_experts: float, num_experts: int, options: DispatcherOptions
) -> int:
    """Returns C, the slots of an expert for a group: never more than it can use.

    Args:
      group_size: S; a token chooses an expert once at most, so that C <= S.
      num_selected_experts: K, or the mean number that tokens use; 1 for Expert Choice.
      num_experts: E.
      options: Options of the dispatch method.

    Raises:
      ValueError: If the capacity factor is not positive, or no slot is left.
    """
    capacity = compute_capacity(
        group_size * num_selected_experts,
        num_experts,
        options.capacity_factor,
        options.capacity_ceil_or_round,
        options.capacity_multiple_of,
    )
    return min(capacity, group_size)


def number_choices(
    chosen: Bool[Array, "G S K E"],
    priority: Float[Array, "G S"] | None,
    mask: Bool[Array, "G S"] | None,
    capacity: int,
) -> Int[Array, "G S K"]:
    """Numbers the choices of each expert from 0: its slots, by rank, then by token.

    Args:
      chosen: One-hot expert of each choice.
      priority: Tokens with a larger value come first; None for the order of the tokens.
      mask: False for tokens that are not numbered; their slots are `capacity`.
      capacity: C.
    """
    num_groups, group_size, num_selected, num_experts = chosen.shape
    counted = chosen if mask is None else chosen & mask[:, :, None, None]
    counted = counted.astype(jnp.int32)
    if priority is not None:
        # Put tokens in the order of their priority; undone below.
        order = jnp.argsort(-priority, axis=1, stable=True)
        counted = jnp.take_along_axis(counted, order[:, :, None, None], axis=1)
    # One queue per group in which all first choices precede all second ones: rank, then token.
    by_rank = jnp.swapaxes(counted, 1, 2)  # (G, K, S, E)
    queue = by_rank.reshape(num_groups, num_selected * group_size, num_experts)
    # Column e of the running sum counts the choices of expert e so far; at a choice of e it is
    # the number of the choice, and the one-hot product picks that column.
    position = jnp.cumsum(queue, axis=1).reshape(by_rank.shape) - 1
    slots = jnp.swapaxes(jnp.sum(position * by_rank, axis=-1), 1, 2)  # (G, S, K)
    if priority is not None:
        # The inverse permutation puts the tokens back.
        slots = jnp.take_along_axis(slots, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return slots if mask is None else jnp.where(mask[:, :, None], slots, capacity)
