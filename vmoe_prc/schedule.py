"""Learning rate schedules, by the names that V-MoE's configs use."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax

from vmoe_prc.config import nearest


def create_learning_rate_schedule(
    *, schedule: str, total_steps: int, **options: float
) -> optax.Schedule:
    """Creates a schedule: a function of the step, a scalar, to the learning rate.

    Args:
      schedule: Name of the schedule.
      total_steps: Step at which a decay ends, unless `decay_steps` is given.
      **options: Options of the schedule, such as `peak_value`, `end_value` and
        `warmup_steps`; the warm-up is linear, from 0.

    Raises:
      ValueError: If the name is unknown or the warm-up is longer than the whole.
    """
    if schedule not in SCHEDULES:
        near = nearest(schedule, SCHEDULES)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(
            f"unknown schedule {schedule!r}; allowed: {', '.join(sorted(SCHEDULES))}{hint}"
        )
    if schedule != "constant":
        options = {"decay_steps": total_steps, "warmup_steps": 0, **options}
        if options["warmup_steps"] >= options["decay_steps"]:
            raise ValueError(
                f"warmup_steps = {options['warmup_steps']} must be less than the "
                f"{options['decay_steps']} steps of the schedule"
            )
    return SCHEDULES[schedule](**options)


def _constant(value: float) -> optax.Schedule:
    return optax.constant_schedule(value)


def _cosine(
    peak_value: float, warmup_steps: int, decay_steps: int, end_value: float = 0.0
) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak_value, warmup_steps, decay_steps, end_value)


def _polynomial(
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    power: float = 1.0,
) -> optax.Schedule:
    decay = optax.polynomial_schedule(
        peak_value, end_value, power, transition_steps=decay_steps - warmup_steps
    )
    return _after_warmup(decay, peak_value, warmup_steps)


def _linear(
    peak_value: float, warmup_steps: int, decay_steps: int, end_value: float = 0.0
) -> optax.Schedule:
    return _polynomial(peak_value, warmup_steps, decay_steps, end_value)


def _reciprocal_root(
    peak_value: float,
    timescale: int,
    warmup_steps: int,
    decay_steps: int,
    cooldown_steps: int = 0,
) -> optax.Schedule:
    """Decays with 1 / sqrt(step), then linearly to 0 (arXiv 2106.04560)."""
    main_steps = decay_steps - warmup_steps - cooldown_steps

    def root(step):
        return peak_value / jnp.sqrt(1 + step / timescale)

    def decay(step):
        cooldown = 1 - (step - main_steps) / max(cooldown_steps, 1)
        return root(jnp.minimum(step, main_steps)) * jnp.clip(cooldown, 0, 1)

    return _after_warmup(decay if cooldown_steps else root, peak_value, warmup_steps)


def _after_warmup(schedule: optax.Schedule, peak_value: float, warmup_steps: int) -> optax.Schedule:
    warmup = optax.linear_schedule(0.0, peak_value, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "big_vision_rsqrt": _reciprocal_root,
    "constant": _constant,
    "warmup_cosine_decay": _cosine,
    "warmup_linear_decay": _linear,
    "warmup_polynomial_decay": _polynomial,
}
