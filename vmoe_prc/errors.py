"""How a run ends before its time, other than by a mistake in its configuration."""

# EX_TEMPFAIL of sysexits.h: try again later. No signal or library ends a program with it.
PREEMPTED_STATUS = 75


class RunError(RuntimeError):
    """A run that cannot go on, such as for a full disk; its text is one line for the user."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class PreemptedError(RunError):
    """A run that was told to end, and has written a checkpoint.

    Args:
      step: The step of the checkpoint.
    """

    def __init__(self, step: int):
        super().__init__(f"told to end: saved step {step}; the same command goes on from there")
        self.step = step
