"""Options that all balance losses share."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from vmoe_prc.arrays import Array
from vmoe_prc.config.options import option

SCOPES = ("group", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """Options of every balance loss; one of your own adds its weight in a subclass.

    Attributes:
      always_reported: Whether the loss is a metric even where its weight is 0.
    """

    always_reported: ClassVar[bool] = False

    scope: str = option(
        "group",
        "Tokens over which balance is measured: each routing `group` as in V-MoE, or the whole "
        "`batch`, which lets an image keep to few experts.",
        choices=SCOPES,
    )

    @property
    def until(self) -> float:
        """Part of the training in which the loss counts."""
        return 1.0


def mean_over_scope(values: Array, scope: str) -> Array:
    """Averages over tokens: (G, S, E) -> (G, E), or (1, E) for the scope 'batch'."""
    per_group = jnp.mean(values, axis=1)
    return per_group if scope == "group" else jnp.mean(per_group, axis=0, keepdims=True)
