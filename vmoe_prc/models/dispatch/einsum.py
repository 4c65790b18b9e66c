"""Dispatch by products with one-hot masks, as in the V-MoE paper."""

from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch.method import BufferMethod
from vmoe_prc.models.dispatch.plan import Dispatcher, DispatcherOptions


@DISPATCHERS.register("einsum", options=DispatcherOptions)
class Einsum(BufferMethod):
    """Multiplies by masks (G, S, E, C), whose cost grows with S * E * C."""

    @staticmethod
    def to_buffers(
        plan: Dispatcher, x: Float[Array, "G S D"], dtype: Any
    ) -> Float[Array, "E G C D"]:
        """Copies the tokens of this device into their slots; free slots hold zeros."""
        del dtype
        mask, _ = _one_hot_masks(plan)
        return jnp.einsum("GSEC,GSD->EGCD", mask.astype(x.dtype), x)

    @staticmethod
    def from_buffers(
        plan: Dispatcher, y: Float[Array, "E G C D"], dtype: Any
    ) -> Float[Array, "G S D"]:
        """Sums the slots of each token of this device with its weights."""
        mask, gates = _one_hot_masks(plan)
        weights = jnp.where(mask, gates[..., None], 0).astype(dtype)
        return jnp.einsum("GSEC,EGCD->GSD", weights, y)


def _one_hot_masks(plan: Dispatcher) -> tuple[jax.Array, jax.Array]:
    """Returns the slots taken, (G, S, E, C) bool, and the weights of the experts, (G, S, E)."""
    chosen = plan.experts[..., None] == jnp.arange(plan.num_experts)  # (G, S, K, E)
    slot_of_expert = jnp.max(jnp.where(chosen, plan.slots[..., None], -1), axis=2)
    mask = slot_of_expert[..., None] == jnp.arange(plan.capacity)
    gates = jnp.sum(jnp.where(chosen, plan.weights[..., None], 0), axis=2)
    return mask, gates
