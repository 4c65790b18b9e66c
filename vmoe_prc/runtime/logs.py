"""Log lines: ours from INFO on, warnings of libraries; on stderr and in a file."""

import contextlib
import io
import logging as standard_logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from vmoe_prc.errors import MEMORY_ADVICE

_PACKAGE = str(Path(__file__).parents[1])


def setup_logging(quiet: bool = False) -> None:
    """Shows our log lines on stderr from INFO on, and the log lines of libraries from WARNING on.

    Args:
      quiet: Whether ours are shown from WARNING on, too: INFO of one process is enough.
    """
    level = logging.WARNING if quiet else logging.INFO
    logging.use_absl_handler()
    # "Logging before flag parsing goes to stderr": there is no public switch.
    logging._warn_preinit_stderr = False  # pyright: ignore[reportAttributeAccessIssue]
    logging.set_verbosity(level)
    logging.set_stderrthreshold(level)
    handler = logging.get_absl_handler()
    handler.setFormatter(_ShortFormatter(datefmt="%H:%M:%S"))
    if _first_line_of_others not in handler.filters:
        handler.addFilter(_ours_or_warning)
        handler.addFilter(_first_line_of_others)


# Made early: there is no memory for it later.
_OUT_OF_MEMORY = f"error: out of memory in a thread of a library; {MEMORY_ADVICE}\n".encode()


def log_errors_of_threads() -> None:
    """Logs errors that C++ code of libraries cannot raise in its threads, as one line.

    Orbax stops at the first array that cannot be read, and raises; the reads of the other arrays
    then end in threads without an event loop, each with a traceback. Where memory runs out in
    such a thread, the process ends with status 1: TensorStore could not report that an array is
    written, and the checkpoint would be waited for without end.
    """
    sys.unraisablehook = _log_unraisable


def _log_unraisable(unraisable: Any) -> None:
    # `sys.UnraisableHookArgs`, which only type checkers know.
    # Errors of Python's own code, as in `__del__`, name an object.
    if unraisable.object is not None:
        sys.__unraisablehook__(unraisable)
    elif unraisable.exc_type is MemoryError:
        os.write(2, _OUT_OF_MEMORY)
        os._exit(1)
    elif threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)
    else:
        kind, error = unraisable.exc_type.__name__, unraisable.exc_value
        logging.warning("a thread of a library: %s: %s", kind, error)


class _ShortFormatter(standard_logging.Formatter):
    """Writes the time and the text of our INFO lines, and the origin of all others."""

    def formatMessage(self, record: standard_logging.LogRecord) -> str:  # noqa: N802
        parts = [self.formatTime(record, self.datefmt)]
        if record.levelno != standard_logging.INFO:
            parts.append(f"{record.levelname.lower()}:")
        if not record.pathname.startswith(_PACKAGE):
            parts.append(f"{Path(record.pathname).name}:{record.lineno}:")
        return " ".join([*parts, record.message])


class _LogFile(standard_logging.FileHandler):
    """Writes to a file as long as it can be written; a run does not end for its log."""

    _failed = False

    def emit(self, record: standard_logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # It opens the file with the first line.
            self.handleError(record)

    def handleError(self, record: standard_logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            logging.warning("%s cannot be written: %s", self.baseFilename, error)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # Lines that could not be written raise again.
            super().close()


@contextlib.contextmanager
def log_file(path: epath.Path) -> Iterator[None]:
    """Appends log lines to a file, and the traceback of an exception that leaves the block.

    Args:
      path: The file, local or in an object store, where it is written at the end.
    """
    remote = "://" in str(path)
    pending = io.StringIO()
    handler = (
        standard_logging.StreamHandler(pending)
        if remote
        else _LogFile(path, encoding="utf-8", delay=True)
    )
    handler.setFormatter(standard_logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_ours_or_warning)
    root = standard_logging.getLogger()
    # Before the handler of stderr, which shortens the records of libraries.
    root.handlers.insert(0, handler)
    try:
        yield
    except BaseException as error:
        record = standard_logging.makeLogRecord(
            {
                "levelno": standard_logging.ERROR,
                "levelname": "ERROR",
                "msg": "%s",
                "args": (str(error) or type(error).__name__,),
                "exc_info": (type(error), error, error.__traceback__),
            }
        )
        handler.emit(record)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
        if remote and (text := pending.getvalue()):
            path.write_text((path.read_text() if path.exists() else "") + text)


def _ours_or_warning(record: standard_logging.LogRecord) -> bool:
    return record.pathname.startswith(_PACKAGE) or record.levelno >= standard_logging.WARNING


def _first_line_of_others(record: standard_logging.LogRecord) -> bool:
    if record.exc_info and not record.pathname.startswith(_PACKAGE):
        # Errors in threads of libraries are raised in ours, too.
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
        record.exc_info = record.exc_text = None
    return True
