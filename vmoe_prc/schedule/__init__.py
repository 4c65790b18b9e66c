"""Learning rate schedules, by the names that V-MoE's configs use.

A schedule is a function of its options and of `total_steps`, the steps of the training, that
registers itself in `config.registry.SCHEDULES` and returns an `optax.Schedule`.
"""

from typing import Any

import optax

from vmoe_prc.config.registry import SCHEDULES


def create_learning_rate_schedule(
    *, schedule: str, total_steps: int, **options: Any
) -> optax.Schedule:
    """Creates a schedule: a function of the step, a scalar, to the learning rate.

    Args:
      schedule: Name of the schedule.
      total_steps: Steps of the training.
      **options: Options of the schedule, such as `peak_value` and `warmup_steps`.

    Raises:
      ValueError: If the name is unknown, or the options contradict each other.
      TypeError: If an option is unknown, or a required one is missing.
    """
    factory, options_class = SCHEDULES[schedule], SCHEDULES.options(schedule)
    return factory(options_class(**options), total_steps)
