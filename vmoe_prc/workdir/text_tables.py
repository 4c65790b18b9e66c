"""Tables as plain text."""

from collections.abc import Callable, Iterable, Sequence


def aligned_lines(
    rows: Iterable[Sequence[str]],
    align: Callable[[str, int], str] = str.ljust,
    first: Callable[[str, int], str] | None = None,
) -> list[str]:
    """Pads the cells of each column to its widest cell.

    Args:
      rows: Rows of equally many cells, the header among them.
      align: `str.ljust` or `str.rjust`.
      first: The same for the first column; `align` if None.

    Returns:
      One line per row; columns are two spaces apart, and lines do not end in spaces.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = [first or align, *[align] * (len(widths) - 1)]
    padded = [[a(cell, w) for a, cell, w in zip(aligns, row, widths, strict=True)] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]


def markdown_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is the header."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]
