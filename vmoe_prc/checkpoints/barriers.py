"""Barriers for the processes of a run that write a checkpoint."""

from collections.abc import Callable


class CheckpointBarriers:
    """Barriers of Orbax, at which a process that could not write its part does not wait.

    For each checkpoint Orbax announces a save, writes in a thread, and announces the end of the
    save. Each of these has two barriers, in this order. A thread that fails leaves out its
    barriers, so that the processes would wait at different ones, for 20 minutes. Here the failed
    process continues at once, raises its error when it next saves or waits, and ends. That ends the
    others, as JAX misses its heartbeat.

    Args:
      wait: Waits for all processes, as `orbax.checkpoint.multihost.get_barrier_sync_fn()`.
    """

    def __init__(self, wait: Callable[..., None]):
        self._wait = wait
        self._is_writing, self._is_closing, self._has_failed = False, False, False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits at the barrier `key`, unless this process has failed."""
        if "set_value_start" in key and self._is_writing:
            self._has_failed = True
        if self._has_failed:
            return
        self._wait(key=key, timeout_ms=timeout_ms)
        if "set_value_end" in key:
            self._is_writing, self._is_closing = not self._is_closing, False
        elif "async_commit_complete" in key:
            self._is_writing, self._is_closing = False, True
