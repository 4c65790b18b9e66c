"""A constant learning rate."""

import dataclasses

import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import SCHEDULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantOptions:
    """Options of `constant`."""

    value: float = option(help="Learning rate of every step.", minimum=0.0)


@SCHEDULES.register(options=ConstantOptions)
def constant(options: ConstantOptions, total_steps: int) -> optax.Schedule:
    """Returns a schedule of one rate."""
    del total_steps
    return optax.constant_schedule(options.value)
