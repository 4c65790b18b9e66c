"""Losses that make the router treat matched patches of two views alike.

Every loss takes noise-free gates (B, 2, T, E) of B image pairs and token pairs (B, X, 2)
int32 (view 0, view 1), where (-1, -1) marks no match. Sums run over the whole batch: under
jit with a sharded batch, over the global one. Without any matched pair the losses are 0
with zero gradient.

A loss is a function (gates, pairs, options) -> (loss, terms) that registers itself in
`config.registry.CONSISTENCY_LOSSES`: the loss with its weights, and scalar metrics by name.
Its options are a subclass of `ConsistencyOptions`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array
from vmoe_prc.config.metric_names import block_number
from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.losses.consistency.divergence import jsd_consistency, l2_consistency
from vmoe_prc.losses.consistency.options import ConsistencyOptions, LossAndTerms, WeightedOptions
from vmoe_prc.losses.consistency.pairs import matched_gates
from vmoe_prc.losses.consistency.prc import prc_loss
from vmoe_prc.models.routing import Routing

__all__ = [
    "ConsistencyLoss",
    "ConsistencyOptions",
    "LossAndTerms",
    "WeightedOptions",
    "jsd_consistency",
    "l2_consistency",
    "matched_gates",
    "prc_loss",
]


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """A consistency loss with its options, as a configuration chooses it.

    Attributes:
      name: Name of the loss.
      options: Its options.
    """

    name: str
    options: ConsistencyOptions

    @classmethod
    def create(
        cls, config: "Mapping[str, Any] | ConsistencyLoss | None"
    ) -> "ConsistencyLoss | None":
        """Reads the section `config.consistency`: `name` and fields of the loss's options.

        Raises:
          ValueError: If the name is unknown.
          TypeError: If an option is unknown, or a required one is missing.
        """
        if config is None or isinstance(config, ConsistencyLoss):
            return config
        fields = dict(config)
        name = fields.pop("name")
        return cls(name, CONSISTENCY_LOSSES.options(name)(**fields))

    def applies_to(self, block: str) -> bool:
        """Whether a block, such as 'encoderblock_3', has the loss."""
        blocks = self.options.blocks
        return blocks is None or block_number(block) in blocks

    def __call__(self, routing: Routing, pairs: Array | None) -> LossAndTerms:
        """Computes the loss of one block.

        Args:
          routing: Routing record of pairs of adjacent views.
          pairs: (B, X, 2) matched tokens.

        Raises:
          ValueError: If there are no pairs.
        """
        if pairs is None:
            raise ValueError(f"the consistency loss {self.name!r} needs pairs of matched tokens")
        num_pairs, num_experts = pairs.shape[0], routing.gates.shape[-1]
        gates = routing.gates.reshape(num_pairs, 2, -1, num_experts)  # (B, 2, T, E)
        if self.options.stop_gradient:
            view = {"view0": 0, "view1": 1}[self.options.stop_gradient]
            gates = jnp.asarray(gates).at[:, view].set(jax.lax.stop_gradient(gates[:, view]))
        return CONSISTENCY_LOSSES[self.name](gates, pairs, self.options)
