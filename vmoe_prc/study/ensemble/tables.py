"""Tables of ensembles' results: means per variant, and paired differences with t intervals.

python -m vmoe_prc.study.ensemble.tables DIR/main.jsonl --reference="V-MoE, batch balance"
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program
from vmoe_prc.workdir.text_tables import markdown_lines

Result = Mapping[str, Any]
# Title, and the value of a run. Shares in [0, 1] are printed in %, and so hundredths of a nat.
COLUMNS: Mapping[str, Callable[[Result], float]] = {
    "accuracy": lambda r: r["accuracy"],
    "D_view": lambda r: r["accuracy/own"] - r["accuracy/other_view"],
    "D_random": lambda r: r["accuracy/own"] - r["accuracy/random"],
    "top-1 agreement": lambda r: r["top1"],
    "chance": lambda r: r["chance"],
    "image": lambda r: r["image"],
    "place": lambda r: r["place"],
    "kappa_place": lambda r: r["kappa_place"],
    "experts in use": lambda r: r["use"],
    "NLL": lambda r: r["nll"],
    "crop accuracy": lambda r: r["crop_accuracy"],
    "same label": lambda r: r["same_label"],
    "kappa, noise 0.1": lambda r: r["noise_0.1/kappa"],
    "kappa, noise 0.3": lambda r: r["noise_0.3/kappa"],
}


def means_table(
    results: Sequence[Result], columns: Sequence[str] = tuple(COLUMNS)
) -> list[list[str]]:
    """Returns a row per variant: mean ± standard deviation over its seeds, in %.

    Args:
      results: Runs of a stage.
      columns: Names in `COLUMNS`.
    """
    rows = [["", "n", *columns]]
    for name, runs in _by_variant(results).items():
        cells = []
        for value in map(COLUMNS.__getitem__, columns):
            values = 100 * np.array([value(run) for run in runs])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}")
        rows.append([name, str(len(runs)), *cells])
    return rows


def differences_table(
    results: Sequence[Result], reference: str, columns: Sequence[str] = tuple(COLUMNS)
) -> list[list[str]]:
    """Returns a row per variant: difference from the reference over the seeds of both, in points.

    Args:
      results: Runs; the runs of a variant have different seeds.
      reference: Name of the variant that is subtracted.
      columns: Names in `COLUMNS`.

    Returns:
      Mean differences with 95% t intervals of at least three pairs, and a header.

    Raises:
      ConfigError: If no run is of the reference.
    """
    variants = _by_variant(results)
    if reference not in variants:
        allowed = f"expected one of {', '.join(variants)}"
        raise ConfigError("--reference", reference, allowed, nearest(reference, variants))
    by_seed = {run["seed"]: run for run in variants[reference]}
    rows = [["minus " + reference, "n", *columns]]
    for name, runs in variants.items():
        pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
        if name == reference or not pairs:
            continue
        cells = []
        for value in map(COLUMNS.__getitem__, columns):
            differences = 100 * np.array([value(a) - value(b) for a, b in pairs])
            cell = f"{differences.mean():+.2f}"
            if len(pairs) > 2:
                low, high = stats.ttest_1samp(differences, 0).confidence_interval()
                cell += f" [{low:+.2f}, {high:+.2f}]"
            cells.append(cell)
        rows.append([name, str(len(pairs)), *cells])
    return rows


def _by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    variants: dict[str, list[Result]] = {}
    for run in results:
        variants.setdefault(run.get("label") or run["variant"], []).append(run)
    return variants


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables of a file of results; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m vmoe_prc.study.ensemble.tables",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("results", type=pathlib.Path, help="a file of JSON lines")
    parser.add_argument("--reference", help="variant that the others are compared with")
    parser.add_argument(
        "--columns",
        nargs="+",
        choices=COLUMNS,
        default=list(COLUMNS),
        metavar="COLUMN",
        help=f"what to show, by default all: {', '.join(map(repr, COLUMNS))}",
    )
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    return run_program(lambda: _print_tables(args), args.traceback)


def _print_tables(args: argparse.Namespace) -> None:
    results = [json.loads(line) for line in args.results.read_text().splitlines()]
    tables = [means_table(results, args.columns)]
    if args.reference:
        tables.append(differences_table(results, args.reference, args.columns))
    print("\n\n".join("\n".join(markdown_lines(table)) for table in tables))


if __name__ == "__main__":
    sys.exit(main())
