"""Dispatch by copying rows."""

from typing import Any

import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch.method import BufferMethod
from vmoe_prc.models.dispatch.plan import Dispatcher, DispatcherOptions
from vmoe_prc.models.permutation import Permutation, permute, unpermute


@DISPATCHERS.register("gather", options=DispatcherOptions)
class Gather(BufferMethod):
    """Gathers rows by their indices, forward and backward."""

    @staticmethod
    def to_buffers(
        plan: Dispatcher, x: Float[Array, "G S D"], dtype: Any
    ) -> Float[Array, "E G C D"]:
        """Copies the tokens of this device into their slots; free slots hold zeros."""
        del dtype
        size = x.shape[-1]
        rows = permute(x.reshape(-1, size), _buffer_rows(plan))
        return rows.reshape(plan.num_experts, -1, plan.capacity, size)

    @staticmethod
    def from_buffers(
        plan: Dispatcher, y: Float[Array, "E G C D"], dtype: Any
    ) -> Float[Array, "G S D"]:
        """Sums the slots of each token of this device with its weights."""
        size = y.shape[-1]
        weights = plan.weights.reshape(-1, plan.weights.shape[-1])
        tokens = unpermute(y.reshape(-1, size), weights, _buffer_rows(plan), dtype)
        return tokens.reshape(*plan.experts.shape[:2], size)


def _buffer_rows(plan: Dispatcher) -> Permutation:
    """Returns the rows of the flattened buffers (E, G, C) that the choices have."""
    num_groups, _, num_selected = plan.experts.shape
    num_rows = plan.num_experts * num_groups * plan.capacity
    group = jnp.arange(num_groups, dtype=jnp.int32)[:, None, None]
    row = (plan.experts * num_groups + group) * plan.capacity + plan.slots
    row = jnp.where(plan.kept, row, num_rows)
    return Permutation.create(row.reshape(-1, num_selected), num_rows)
