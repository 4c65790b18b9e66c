"""Decay with the reciprocal square root of the step (Zhai et al., arXiv 2106.04560)."""

import dataclasses

import jax.numpy as jnp
import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import SCHEDULES
from vmoe_prc.schedule.warmup import WarmupOptions, after_warmup


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReciprocalRootOptions(WarmupOptions):
    """Options of `big_vision_rsqrt`."""

    timescale: int = option(
        help="Steps after the warm-up at which the rate is 1 / sqrt(2) of its peak.", minimum=1
    )
    cooldown_steps: int = option(
        0, "Last steps, in which the rate also decays linearly to 0.", minimum=0
    )


@SCHEDULES.register("big_vision_rsqrt", options=ReciprocalRootOptions)
def reciprocal_root(options: ReciprocalRootOptions, total_steps: int) -> optax.Schedule:
    """Decays with 1 / sqrt(1 + step / timescale), then linearly to 0.

    Raises:
      ValueError: If warm-up and cooldown together are longer than the schedule, or the
        timescale is not positive.
    """
    end, cooldown_steps = options.end(total_steps), options.cooldown_steps
    main_steps = end - options.warmup_steps - cooldown_steps
    if main_steps < 0:
        raise ValueError(
            f"warmup_steps = {options.warmup_steps} and cooldown_steps = {cooldown_steps} must "
            f"not exceed the {end} steps of the schedule together"
        )
    if options.timescale <= 0:
        raise ValueError(f"timescale = {options.timescale} must be positive")

    def root(step):
        return options.peak_value / jnp.sqrt(1 + step / options.timescale)

    def decay(step):
        cooldown = 1 - (step - main_steps) / max(cooldown_steps, 1)
        return root(jnp.minimum(step, main_steps)) * jnp.clip(cooldown, 0, 1)

    return after_warmup(decay if cooldown_steps else root, options)
