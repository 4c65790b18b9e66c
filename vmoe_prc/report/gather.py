"""Gathers a page about runs and writes it."""

import pathlib
from collections.abc import Sequence

from vmoe_prc.files import replacing
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.page import make_page
from vmoe_prc.report.runs import ReportError


def write_page(
    path: str | pathlib.Path, experiments: Sequence[Experiment], warnings: Sequence[str]
) -> list[str]:
    """Writes the page, whole or not at all.

    Args:
      path: The file to write.
      experiments: See `make_page`.
      warnings: What to tell the reader of runs that were left out.

    Returns:
      These warnings, and those of pictures that could not be made.

    Raises:
      ReportError: If the file is a directory.
      OSError: If it cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ReportError(f"{path}: is a directory; expected a file to write")
    with replacing(path) as temporary:
        temporary.touch()  # a place that cannot be written to is found at once
        temporary.write_text(make_page(experiments, (), warnings))
    return list(warnings)
