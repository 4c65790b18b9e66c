"""Errors that their text explains to the user in one line, and the exit statuses of programs."""

import os

# EX_TEMPFAIL of sysexits.h: try again later. No signal or library ends a program with it.
PREEMPTED_STATUS = 75
# Advice in errors about memory that runs out.
MEMORY_ADVICE = (
    "use smaller batches (config.dataset.*.batch_size), more config.microsteps, a smaller model, "
    "or more devices"
)


class UserError(Exception):
    """An error whose text is one line for the user; `runtime.programs` prints it.

    An error that code of the user caused is its `__cause__` or `__context__`; programs then
    print the traceback, too.

    Attributes:
      exit_status: Exit status of a program that ends with it. 2: the command, its
        configuration or its files cannot be used.
    """

    exit_status = 2

    # Whether the text has a line for each of several mistakes.
    _has_lines = False

    def __init__(self, message: str):
        # Names of files may have line breaks.
        super().__init__(message if self._has_lines else " ".join(message.splitlines()))


class RunError(UserError, RuntimeError):
    """A run that cannot continue, such as when the disk is full."""

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class PreemptedError(RunError):
    """A run that was asked to end, and has saved a checkpoint.

    Args:
      step: The step of the checkpoint.
      workdir: Directory of the run, where the command that resumes it has to name it.
    """

    exit_status = PREEMPTED_STATUS

    def __init__(self, step: int, workdir: str | os.PathLike[str] | None = None):
        named = "" if workdir is None else f" with --workdir={os.fspath(workdir)}"
        super().__init__(
            f"preempted: checkpoint saved at step {step}; run the same command{named} to resume"
        )
        self.step = step
