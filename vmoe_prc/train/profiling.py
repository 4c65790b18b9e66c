"""Traces of a few steps, for TensorBoard's profiler."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import ml_collections
from etils import epath

from vmoe_prc.workdir.layout import TENSORBOARD_FOLDER


@contextlib.contextmanager
def profiler(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> Iterator[Callable[[int], None]]:
    """Gives a function to call after each step, which traces those that the config names.

    Args:
      config: The completed configuration; `profile` selects the steps.
      workdir: Directory of the run; the trace goes to its TensorBoard.
    """
    if config.profile is None or jax.process_index() != 0:
        yield lambda step: None
        return
    first = config.profile.first_profile
    last = first + config.profile.num_profile_steps - 1
    running = False

    def after(step: int) -> None:
        nonlocal running
        if step == first - 1:
            jax.profiler.start_trace(str(workdir / TENSORBOARD_FOLDER))
            running = True
        elif step == last and running:
            jax.profiler.stop_trace()
            running = False

    try:
        yield after
    finally:
        if running:
            jax.profiler.stop_trace()
