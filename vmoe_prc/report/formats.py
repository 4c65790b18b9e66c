"""Tables as text, Markdown or CSV."""

import csv
import io
from collections.abc import Callable, Sequence

from vmoe_prc.report.paired import Comparison, Difference, DifferenceTable
from vmoe_prc.report.tables import ACCURACY, IMAGES, SAMPLING_ERROR, Estimate, Row, Table
from vmoe_prc.workdir.text_tables import aligned_lines, markdown_lines

# Longer settings become notes below a table.
MAX_SETTINGS = 40


def to_text(tables: Sequence[Table | DifferenceTable]) -> str:
    """Aligns the columns for a terminal."""
    return "\n\n".join(map(_text_table, tables))


def to_markdown(tables: Sequence[Table | DifferenceTable]) -> str:
    """Formats tables for a README."""
    return "\n\n".join(map(_markdown_table, tables))


def to_csv(tables: Sequence[Table]) -> str:
    """Writes one row per estimate, with full precision: `mean` and `std` are in %."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["table", "dataset", "method", "k", "settings", "seeds", "figure", "mean", "std"]
    )
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                if column in row.estimates:
                    estimate, experiment = row.estimates[column], row.experiment
                    seeds = " ".join(map(str, experiment.seeds))
                    described = [
                        experiment.dataset,
                        experiment.method,
                        experiment.k,
                        experiment.settings,
                        seeds,
                    ]
                    writer.writerow([table.title, *described, column, estimate.mean, estimate.std])
    return file.getvalue().rstrip("\n")


def table_cells(table: Table | DifferenceTable) -> list[list[str]]:
    """Returns the texts of a table, its header first."""
    if isinstance(table, DifferenceTable):
        header = ["comparison", "seeds", *table.columns]
        rows = [_comparison(row, table.columns) for row in table.rows]
        if any(row.sampling_error is not None for row in table.rows):
            header.append(f"{ACCURACY}: {SAMPLING_ERROR}, at most")
            errors = [row.sampling_error for row in table.rows]
            rows = [
                [*r, "-" if e is None else f"{e:.2f}"] for r, e in zip(rows, errors, strict=True)
            ]
        return [header, *rows]
    with_settings = any(row.experiment.settings for row in table.rows)
    header = ["data set", "method", "k", *["settings"] * with_settings, "seeds", *table.columns]
    return [header, *(_row(row, table.columns, with_settings) for row in table.rows)]


def differences_to_csv(table: DifferenceTable) -> str:
    """Writes one row per difference, with full precision, in points of %."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["comparison", "seeds", "figure", "mean", "low", "high"])
    for row in table.rows:
        for column, value in row.differences.items():
            seeds = " ".join(map(str, row.seeds))
            writer.writerow([row.name, seeds, column, value.mean, value.low, value.high])
    return file.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
}


def _row(row: Row, columns: Sequence[str], with_settings: bool) -> list[str]:
    experiment = row.experiment
    k = "-" if experiment.k is None else str(experiment.k)
    settings = [experiment.settings] * with_settings
    diverged = sum(run.diverged for run in experiment.runs)
    seeds = str(len(experiment.runs) - diverged) + (f" + {diverged} diverged" if diverged else "")
    cells = [_cell(row.estimates.get(column), column) for column in columns]
    return [experiment.dataset, experiment.method, k, *settings, seeds, *cells]


def _comparison(row: Comparison, columns: Sequence[str]) -> list[str]:
    differences = [_difference(row.differences.get(column)) for column in columns]
    return [row.name, str(len(row.seeds)), *differences]


def _difference(value: Difference | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.mean:+.2f}{interval}"


def _cell(estimate: Estimate | None, column: str) -> str:
    if estimate is None:
        return "-"
    if column == IMAGES:
        return f"{estimate.mean:,.0f}"
    return f"{estimate.mean:.2f}" + ("" if estimate.std is None else f" ± {estimate.std:.2f}")


def _text_table(table: Table | DifferenceTable) -> str:
    cells, notes = _with_notes(table_cells(table))
    return "\n".join([table.title, "-" * len(table.title), *aligned_lines(cells), *notes])


def _with_notes(cells: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """Replaces long settings by numbers, with notes of one setting per line."""
    header, *rows = cells
    if "settings" not in header:
        return cells, []
    column = header.index("settings")
    if max(len(row[column]) for row in rows) <= MAX_SETTINGS:
        return cells, []
    texts = list(dict.fromkeys(row[column] for row in rows if row[column]))
    numbers = {text: f"[{i + 1}]" for i, text in enumerate(texts)} | {"": ""}
    rows = [[*row[:column], numbers[row[column]], *row[column + 1 :]] for row in rows]
    notes = [
        f"{numbers[text] if not i else ' ' * len(numbers[text])} {setting}"
        for text in texts
        for i, setting in enumerate(text.split(", "))
    ]
    return [header, *rows], ["", *notes]


def _markdown_table(table: Table | DifferenceTable) -> str:
    return "\n".join([f"**{table.title}**", "", *markdown_lines(table_cells(table))])
