"""Tables as text, Markdown or CSV."""

import csv
import io
from collections.abc import Callable, Sequence

from vmoe_prc.report.tables import Figure, Row, Table


def to_text(tables: Sequence[Table]) -> str:
    """Aligns the columns for a terminal."""
    return "\n\n".join(map(_text_table, tables))


def to_markdown(tables: Sequence[Table]) -> str:
    """Formats tables for a README."""
    return "\n\n".join(map(_markdown_table, tables))


def to_csv(tables: Sequence[Table]) -> str:
    """Writes one row a figure, with full precision: `mean` and `std` are in %."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["table", "dataset", "method", "k", "settings", "seeds", "figure", "mean", "std"]
    )
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                if column in row.figures:
                    figure = row.figures[column]
                    arm = row.experiment
                    seeds = " ".join(map(str, arm.seeds))
                    described = [arm.dataset, arm.method, arm.k, arm.settings, seeds]
                    writer.writerow([table.title, *described, column, figure.mean, figure.std])
    return file.getvalue().rstrip("\n")


def table_cells(table: Table) -> list[list[str]]:
    """Returns the texts of a table, its header first."""
    with_settings = any(row.experiment.settings for row in table.rows)
    header = ["data set", "method", "k", *["settings"] * with_settings, "seeds", *table.columns]
    return [header, *(_row(row, table.columns, with_settings) for row in table.rows)]


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
}


def _row(row: Row, columns: Sequence[str], with_settings: bool) -> list[str]:
    arm = row.experiment
    k = "-" if arm.k is None else str(arm.k)
    settings = [arm.settings] * with_settings
    figures = [_figure(row.figures.get(column)) for column in columns]
    return [arm.dataset, arm.method, k, *settings, str(len(arm.seeds)), *figures]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.mean:.2f}" + ("" if figure.std is None else f" ± {figure.std:.2f}")


def _text_table(table: Table) -> str:
    cells = table_cells(table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([table.title, "-" * len(table.title), *lines])


def _markdown_table(table: Table) -> str:
    header, *rows = table_cells(table)
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"**{table.title}**", "", *lines])
