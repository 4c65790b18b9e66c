"""Figures that `python -m vmoe_prc.analyze` has left in the work directories."""

from collections.abc import Sequence

from vmoe_prc.report.embedding import Picture, embedded_file
from vmoe_prc.report.page import Section, run_names
from vmoe_prc.report.runs import Run

# Not what lies deeper: pictures of routing are drawn anew, on the same images for all runs.
_FIGURES = "analysis/*.png"


def saved_section(runs: Sequence[Run]) -> tuple[Section, list[str]]:
    """Shows the figures of each run.

    Args:
      runs: The runs of the page.

    Returns:
      The section, and a warning for each file that is no picture.
    """
    pictures: list[Picture] = []
    warnings = []
    for name, run in zip(run_names(runs), runs, strict=True):
        for path in sorted(run.workdir.glob(_FIGURES)):
            try:
                pictures.append(embedded_file(path, caption=f"{name}: {path.name}"))
            except OSError as error:
                warnings.append(f"left out: {path}: {error}")
    text = "Figures that python -m vmoe_prc.analyze left in the work directories."
    return Section("saved", "Saved analyses", text, pictures=pictures), warnings
