"""Sends tokens to their experts and brings the results back.

Letters: G groups of S tokens are routed independently of each other; each token has K
choices among E experts; an expert has C buffer slots per group.

A `Dispatcher` is a plan, the same for every method: the expert and the buffer slot of
each choice of each token. The methods differ in how they move the data:

* `einsum` multiplies by one-hot masks (G, S, E, C), as in the V-MoE paper: friendly to
  matrix units, but its cost grows with S * E * C.
* `gather` moves rows by their indices, forward and backward: it costs as much as a copy.
* `dropless` has no buffers, and capacity does not matter: see `dispatch.dropless`.

A method is a subclass of `DispatchMethod` or of `BufferMethod` that registers itself in
`config.registry.DISPATCHERS`; its options are `DispatcherOptions` or a subclass.
"""

from vmoe_prc.models.dispatch.method import BufferMethod, DispatchMethod, Experts
from vmoe_prc.models.dispatch.plan import (
    Dispatcher,
    DispatcherOptions,
    buffer_capacity,
    compute_capacity,
    top_experts_per_item,
    top_items_per_expert,
)

__all__ = [
    "BufferMethod",
    "DispatchMethod",
    "Dispatcher",
    "DispatcherOptions",
    "Experts",
    "buffer_capacity",
    "compute_capacity",
    "top_experts_per_item",
    "top_items_per_expert",
]
