"""Progress and speed of a run: a bar on a terminal, log lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO, cast

import jax
from absl import logging
from tqdm import tqdm


class StepTimer:
    """Measures training steps, without compilation, evaluation and checkpoints.

    JAX runs ahead: a step that was called has not been computed yet. `report` and
    `paused` therefore wait for the latest result before they look at the clock.

    Args:
      views_per_step: Views that the model sees in a step, over all hosts.
      flops_per_step: FLOPs that the model asks for in a step, over all devices.
      peak_flops: Peak FLOP/s of all devices together, None if it is not known.
      clock: Gives seconds.
    """

    def __init__(
        self,
        views_per_step: int,
        *,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._views, self._flops, self._peak = views_per_step, flops_per_step, peak_flops
        self._clock = clock
        self._since: float | None = None  # None before the end of the first step
        self._steps = 0

    def step(self, result: Any = None) -> None:
        """Counts a step; waits for the `result` of the first, and only of that.

        The first step compiles, so measuring begins after it.
        """
        if self._since is None:
            jax.block_until_ready(result)
            self._since = self._clock()
        else:
            self._steps += 1

    @contextlib.contextmanager
    def paused(self, result: Any = None) -> Iterator[None]:
        """Leaves out what happens inside, once `result` of the latest step is there."""
        jax.block_until_ready(result)
        start = self._clock()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += self._clock() - start

    def report(self, result: Any = None) -> dict[str, float]:
        """Returns the means since the last report; waits for `result` of the latest step.

        Returns:
          `step_seconds`, `views_per_second` and, where the peak is known, `mfu`: the
          share of the peak FLOP/s that the model makes use of. Empty if no step but
          the first has ended.
        """
        jax.block_until_ready(result)
        if self._since is None or not self._steps:
            return {}
        now = self._clock()
        seconds = (now - self._since) / self._steps
        self._since, self._steps = now, 0
        rates = {"step_seconds": seconds, "views_per_second": self._views / seconds}
        if self._flops and self._peak:
            rates["mfu"] = self._flops / seconds / self._peak
        return rates


class Progress:
    """Shows progress; made by `progress`."""

    def __init__(self, total: int, bar: tqdm | None):
        self._total, self._bar = total, bar

    def step(self, step: int) -> None:
        """Moves the bar to `step`, as often as you like."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows behind the bar what takes the time inside, such as 'evaluating'."""
        if self._bar is None:
            yield
            return
        shown = self._bar.postfix
        self._bar.set_postfix_str(what)
        try:
            yield
        finally:
            self._bar.set_postfix_str(shown or "")

    def report(self, step: int, metrics: Mapping[str, Any], rates: Mapping[str, float]) -> None:
        """Shows metrics, such as the loss, and `StepTimer.report()`, with the time left."""
        shown = [f"{name} {float(value):.4g}" for name, value in metrics.items()]
        if "views_per_second" in rates:
            shown.append(f"{rates['views_per_second']:,.0f} views/s")
        if "mfu" in rates:
            shown.append(f"MFU {rates['mfu']:.1%}")
        if "step_seconds" in rates:
            left = (self._total - step) * rates["step_seconds"]
            shown.append(f"ETA {tqdm.format_interval(left)}")
        if self._bar is None:
            done = f"step {step:,} of {self._total:,} ({step / self._total:.1%})"
            logging.info("%s", ", ".join([done, *shown]))
        else:
            self.step(step)
            self._bar.set_postfix_str(", ".join(shown))


@contextlib.contextmanager
def progress(
    total: int, initial: int = 0, *, stream: TextIO | None = None, visible: bool = True
) -> Iterator[Progress]:
    """Shows the progress of a run: a bar if `stream` is a terminal, else log lines.

    While there is a bar, log lines appear above it.

    Args:
      total: Steps of the whole run.
      initial: Step that the run resumes from.
      stream: Where to; stderr by default.
      visible: False shows no bar: only one process should. Log lines stay.
    """
    terminal = stream or sys.stderr
    if not (visible and terminal and terminal.isatty()):
        yield Progress(total, None)
        return
    layout = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} [{elapsed}{postfix}]"
    # Terminals of containers may have no size, and tqdm would show nothing.
    columns, lines = os.get_terminal_size(terminal.fileno())
    width, height = (None, None) if columns and lines else (80, 24)
    bar = tqdm(
        total=total, initial=initial, file=terminal, bar_format=layout, ncols=width, nrows=height
    )
    with bar, _logs_above(terminal):
        yield Progress(total, bar)


class _AboveBar:
    """A text stream that writes above the bar."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self._stream, end="")

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _logs_above(stream: TextIO) -> Iterator[None]:
    # absl writes to the stderr of when it was imported or, before flags are parsed, to the
    # present one; and twice if those differ and the line is severe.
    handler, above = logging.get_absl_handler().python_handler, _AboveBar(stream)
    usual = handler.setStream(above)
    try:
        # Writers to stderr call only `write` and `flush`.
        with contextlib.redirect_stderr(cast(TextIO, above)):
            yield
    finally:
        handler.setStream(usual)
