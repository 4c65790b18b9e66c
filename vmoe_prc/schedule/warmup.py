"""Linear warm-up from 0 to the peak, then a decay to the final rate."""

import dataclasses

import jax.numpy as jnp
import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import SCHEDULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupOptions:
    """Options of every schedule that begins with a warm-up."""

    peak_value: float = option(help="Learning rate at the end of the warm-up.", minimum=0.0)
    warmup_steps: int = option(0, "Steps of the linear warm-up from 0.", minimum=0)
    decay_steps: int | None = option(
        None,
        "Step at which the decay ends, counted from the first step; the last one if None.",
        minimum=1,
    )

    def end(self, total_steps: int) -> int:
        """Returns the step at which the decay ends.

        Raises:
          ValueError: If the warm-up leaves no step for the decay.
        """
        end = total_steps if self.decay_steps is None else self.decay_steps
        if self.warmup_steps >= end:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be less than the {end} steps of the "
                "schedule"
            )
        return end


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayOptions(WarmupOptions):
    """Options of the cosine and the linear decay."""

    end_value: float = option(0.0, "Learning rate from the end of the decay on.", minimum=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolynomialOptions(DecayOptions):
    """Options of `warmup_polynomial_decay`."""

    power: float = option(1.0, "Exponent of the decay; 1 is linear.", above=0.0)


@SCHEDULES.register(options=DecayOptions)
def warmup_cosine_decay(options: DecayOptions, total_steps: int) -> optax.Schedule:
    """Decays along half a period of a cosine."""
    return optax.warmup_cosine_decay_schedule(
        0.0,
        options.peak_value,
        options.warmup_steps,
        options.end(total_steps),
        options.end_value,
    )


@SCHEDULES.register(options=PolynomialOptions)
def warmup_polynomial_decay(options: PolynomialOptions, total_steps: int) -> optax.Schedule:
    """Decays with (1 - t) ** power, where t runs from 0 to 1."""
    decay_steps = options.end(total_steps) - options.warmup_steps
    return after_warmup(_polynomial(options, decay_steps), options)


@SCHEDULES.register(options=DecayOptions)
def warmup_linear_decay(options: DecayOptions, total_steps: int) -> optax.Schedule:
    """Decays linearly."""
    linear = PolynomialOptions(**dataclasses.asdict(options))
    return warmup_polynomial_decay(linear, total_steps)


def after_warmup(schedule: optax.Schedule, options: WarmupOptions) -> optax.Schedule:
    """Puts the warm-up before a schedule, which counts its steps from the end of the warm-up."""
    warmup = optax.linear_schedule(0.0, options.peak_value, options.warmup_steps)
    return optax.join_schedules([warmup, schedule], [options.warmup_steps])


def _polynomial(options: PolynomialOptions, decay_steps: int) -> optax.Schedule:
    if decay_steps < 2**31:
        return optax.polynomial_schedule(
            options.peak_value, options.end_value, options.power, transition_steps=decay_steps
        )

    # optax clips the step to `decay_steps` as an int32, which cannot hold larger numbers.
    def decay(step):
        left = 1 - jnp.asarray(step, jnp.float32) / float(decay_steps)
        return (options.peak_value - options.end_value) * left**options.power + options.end_value

    return decay
