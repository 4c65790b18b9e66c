"""Linear warm-up from 0 to the peak, then an exponential decay."""

import dataclasses

import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import SCHEDULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentialOptions:
    """Options of `warmup_exponential_decay`, which does not depend on the training's length."""

    peak_value: float = option(help="Learning rate at the end of the warm-up.", minimum=0.0)
    warmup_steps: int = option(0, "Steps of the linear warm-up from 0.", minimum=0)
    transition_steps: int = option(help="Steps in which the rate decays once.", minimum=1)
    decay_rate: float = option(help="Factor of one decay.", above=0.0)
    transition_begin: int = option(0, "Steps at the peak before the decay begins.", minimum=0)
    staircase: bool = option(False, "Whether the rate decays at once, not gradually.")
    end_value: float | None = option(
        None, "Rate at which the decay ends; None for no such rate.", minimum=0.0
    )


@SCHEDULES.register(options=ExponentialOptions)
def warmup_exponential_decay(options: ExponentialOptions, total_steps: int) -> optax.Schedule:
    """Decays with decay_rate ** (step / transition_steps)."""
    del total_steps
    return optax.warmup_exponential_decay_schedule(0.0, **dataclasses.asdict(options))
