"""Figures that `python -m vmoe_prc.analyze` has left in the work directories."""

from collections.abc import Sequence

from vmoe_prc.report.embedding import Picture, embedded_file
from vmoe_prc.report.page import Section, run_names
from vmoe_prc.report.runs import Run

# Not `pictures/`: they are drawn anew, on the same images for all runs.
_FIGURES = ("*.png", "specialisation_*/*.png")


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
        folder = run.workdir / "analysis"
        for path in sorted(path for pattern in _FIGURES for path in folder.glob(pattern)):
            try:
                caption = f"{name}: {path.relative_to(folder)}"
                pictures.append(embedded_file(path, caption))
            except OSError as error:
                warnings.append(f"left out: {path}: {error}")
    text = "Figures that python -m vmoe_prc.analyze left in the work directories."
    return Section("saved", "Saved analyses", text, pictures=pictures), warnings
