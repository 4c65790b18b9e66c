"""Losses on one router's decisions, most of which spread tokens over the experts.

A loss is a function (routing, options) -> values (G,) or (1,), or None where it cannot be
computed, that registers itself in `config.registry.BALANCE_LOSSES` under the name of its metric.
Its options, a subclass of `BalanceOptions`, have a field `{name}_weight`; the fields of all
balance losses together are the section `config.auxiliary_loss`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.entropy import global_entropy_loss, local_entropy_loss
from vmoe_prc.losses.balance.options import BalanceOptions
from vmoe_prc.losses.balance.smoothing import smoothing_loss
from vmoe_prc.losses.balance.teacher import teacher_loss
from vmoe_prc.losses.balance.vmoe import gshard_loss, importance_loss, load_loss
from vmoe_prc.losses.balance.z_loss import z_loss
from vmoe_prc.models.routing import Routing

__all__ = [
    "BalanceLosses",
    "BalanceOptions",
    "global_entropy_loss",
    "gshard_loss",
    "importance_loss",
    "load_loss",
    "local_entropy_loss",
    "smoothing_loss",
    "teacher_loss",
    "z_loss",
]


@dataclasses.dataclass(frozen=True)
class BalanceLosses:
    """The options of every registered balance loss.

    Attributes:
      options: Options of each loss by its name.
    """

    options: Mapping[str, Any]

    @classmethod
    def create(cls, fields: Mapping[str, Any] | None = None) -> "BalanceLosses":
        """Sorts the fields of `config.auxiliary_loss` by the losses that they belong to.

        Raises:
          TypeError: If no loss has a field of this name.
        """
        fields, options = dict(fields or {}), {}
        unknown = set(fields)
        for name in BALANCE_LOSSES:
            options_class = BALANCE_LOSSES.options(name)
            names = {field.name for field in dataclasses.fields(options_class)}
            options[name] = options_class(**{n: fields[n] for n in names & fields.keys()})
            unknown -= names
        if unknown:
            raise TypeError(f"no balance loss has the options {', '.join(sorted(unknown))}")
        return cls(options)

    def weight(self, name: str) -> float:
        """Returns the weight of a loss in the total."""
        return getattr(self.options[name], f"{name}_weight")

    def scaled(self, name: str, loss: jax.Array, progress: jax.Array | None) -> jax.Array:
        """Returns a loss with its weight; 0 after the part of the training that it is for."""
        until, weighted = self.options[name].until, self.weight(name) * loss
        if progress is None or until >= 1:
            return weighted
        return jnp.where(progress < until, weighted, 0)

    def values(self, routing: Routing) -> Iterator[tuple[str, jax.Array]]:
        """Yields the name and the mean over groups of each loss that the routing allows.

        A loss of weight 0 is left out, unless it is always reported.
        """
        for name, options in self.options.items():
            if not self.weight(name) and not options.always_reported:
                continue
            value = BALANCE_LOSSES[name](routing, options)
            if value is not None:
                yield name, jnp.mean(value)
