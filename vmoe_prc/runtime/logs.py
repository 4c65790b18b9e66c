"""Log lines: ours from INFO on, the libraries' warnings."""

from logging import WARNING, LogRecord
from pathlib import Path

from absl import logging

_PACKAGE = str(Path(__file__).parents[1])


def setup_logging(quiet: bool = False) -> None:
    """Makes our log lines appear on stderr from INFO on, and the libraries' warnings.

    Args:
      quiet: Whether ours, too, appear from WARNING on: those of one process are enough.
    """
    level = logging.WARNING if quiet else logging.INFO
    logging.use_absl_handler()
    logging.set_verbosity(level)
    logging.set_stderrthreshold(level)
    handler = logging.get_absl_handler()
    if _ours_or_warning not in handler.filters:
        handler.addFilter(_ours_or_warning)


def _ours_or_warning(record: LogRecord) -> bool:
    if record.pathname.startswith(_PACKAGE):
        return True
    if record.exc_info:
        # What a thread of theirs could not do reaches us as an exception, with its trace.
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
        record.exc_info = record.exc_text = None
    return record.levelno >= WARNING
