"""Ends every program in the same way: one line for a recognised error, and an exit status.

Exit status 0: done; 1: the run cannot continue; 2: the command, its configuration or its files
cannot be used; 75: preempted, after a checkpoint was saved; 130: interrupted; 141: nobody reads its
output any more, as in `vmoe-prc predict ... | head`.
"""

import argparse
import atexit
import importlib.util
import os
import re
import select
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from vmoe_prc.errors import MEMORY_ADVICE, PREEMPTED_STATUS, PreemptedError, UserError
from vmoe_prc.runtime.deadline import CLEANUP_SECONDS, exit_after
from vmoe_prc.runtime.quiet_start import quiet_tensorflow

INTERRUPTED_STATUS = 130
# As a shell shows the end of a program by SIGPIPE.
CLOSED_PIPE_STATUS = 141

# Modules that are not in the core, by the extra that installs them.
EXTRAS = {
    "data": (
        *("PIL", "array_record", "clu", "cv2", "filelock", "google_crc32c", "importlib_resources"),
        *("matplotlib", "simplejpeg", "sklearn", "tensorboard", "tensorflow"),
        "tensorflow_datasets",
    ),
    "analysis": ("PIL", "jinja2", "matplotlib", "pandas", "pyarrow", "skimage"),
    "export": ("onnx",),
    "heif": ("pillow_heif",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


class Explanation(NamedTuple):
    """Parts of an error that are printed.

    Attributes:
      line: One line for the user, None for an error that we do not recognise.
      status: Exit status.
      bug: The exception that code of the user raised; None if there is no such code.
    """

    line: str | None
    status: int
    bug: BaseException | None


def setup() -> None:
    """Sets this process up: log lines on stderr, and a cache of compiled functions.

    Programs call it at their start, and nothing does by being imported.
    """
    from vmoe_prc.runtime.compilation_cache import use_compilation_cache
    from vmoe_prc.runtime.logs import log_errors_of_threads, setup_logging

    setup_logging()
    log_errors_of_threads()
    use_compilation_cache()


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--traceback`, which `run_program` takes."""
    parser.add_argument(
        "--traceback", action="store_true", help="show the traceback of every error"
    )


def run_program(program: Callable[[], int | None], show_traceback: bool | None = None) -> int:
    """Runs a program, and prints an error that ends it to stderr.

    An error that we recognise is one line. The traceback follows where code of the user (a
    config file, an op, a router, ...) raised it, or with `--traceback`; other errors are
    printed as their traceback.

    Args:
      program: The program; returns an exit status, None for 0.
      show_traceback: Whether to print every traceback; by default if `--traceback` is among
        the arguments of this process.

    Returns:
      The exit status.
    """
    if show_traceback is None:
        show_traceback = "--traceback" in sys.argv
    # Hides the lines of TensorFlow's C++ code below errors, except those printed at its start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    quiet_tensorflow()
    try:
        status = program() or 0
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # Nor can Python write the rest when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE_STATUS
        line, status, bug = explain(error)
        if line is not None:
            print(line, file=sys.stderr)
        if line is None or show_traceback:
            traceback.print_exception(error)
        elif bug is not None:
            # Without the frames of ours that lead to the code of the user.
            traceback.print_exception(type(bug), bug, _from_user_code(bug.__traceback__))
        sys.stderr.flush()
        _leave_at_once(status)
        # Without the error its frames and what they hold are destroyed.
        call_off = exit_after(CLEANUP_SECONDS, status)
    call_off()
    atexit.register(exit_after, CLEANUP_SECONDS, status)
    return status


def _reader_is_gone() -> bool:
    """Returns whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # No file, or closed.
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def explain(error: BaseException) -> Explanation:
    """Finds what to print of an error that ends a program."""
    line, status = _recognise(error)
    return Explanation(line, status, _bug_of_user(error))


def _recognise(error: BaseException) -> tuple[str | None, int]:
    if isinstance(error, PreemptedError):
        return str(error), error.exit_status
    if isinstance(error, UserError):
        return f"error: {error}", error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED_STATUS
    for cause in _chain(error):
        if (asked := _out_of_memory(cause)) is not None:
            return f"error: out of memory{asked}; {MEMORY_ADVICE}", 1
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error)):
        name = (error.name or "").partition(".")[0]
        return f'error: {name} is not installed: pip install "vmoe_prc[{extra}]"', 2
    if isinstance(error, OSError):
        return f"error: {error}", 2
    return None, 1


def _out_of_memory(error: BaseException) -> str | None:
    """Returns how much was asked for in words, '' if unknown; None for any other error."""
    text = str(error)
    # By name: programs that need neither JAX nor TensorFlow have not imported them.
    names = ("JaxRuntimeError", "XlaRuntimeError", "ResourceExhaustedError")
    if isinstance(error, MemoryError):
        found = re.search(r"allocate ([\d.]+ [KMGTPE]?iB)", text)
        return f" ({found[1]} asked for at once)" if found else ""
    if type(error).__name__ in names and re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory|OOM", text):
        found = re.search(r"allocat\w+ (\d+) bytes", text)
        return f" ({int(found[1]) / 2**30:.2f} GiB asked for at once)" if found else ""
    return None


def _extra_of(error: ModuleNotFoundError) -> str | None:
    name = (error.name or "").partition(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
    # A module that is missing in an installed package is a bug.
    return extra if extra and importlib.util.find_spec(name) is None else None


def _bug_of_user(error: BaseException) -> BaseException | None:
    """Returns the exception in the chain that was raised by code of the user, if any.

    A `UserError` is no bug: it may be raised by a config file on purpose.
    """
    for cause in _chain(error):
        if not isinstance(cause, (UserError, KeyboardInterrupt)) and _raised_by_user(cause):
            return cause
    return None


def _raised_by_user(error: BaseException) -> bool:
    """Whether the innermost frame outside libraries is in a file of the user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [_owner(frame.f_code.co_filename) for frame in reversed(frames)]
    return next((owner for owner in owners if owner != "library"), None) == "user"


def _from_user_code(tb: types.TracebackType | None) -> types.TracebackType | None:
    """Skips the frames before the first one of the user."""
    while tb is not None and _owner(tb.tb_frame.f_code.co_filename) != "user":
        tb = tb.tb_next
    return tb


def _owner(file: str) -> Literal["us", "library", "user"]:
    # This package first: it may be installed among the libraries.
    if file.startswith(_PACKAGE):
        return "us"
    return "library" if file.startswith(("<", *_LIBRARIES)) else "user"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and those that it was raised from, also where `from None` hides them."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _leave_at_once(status: int) -> None:
    """Ends one of several processes without waiting for the others, which may wait for it."""
    jax = sys.modules.get("jax")
    if status != PREEMPTED_STATUS and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)
