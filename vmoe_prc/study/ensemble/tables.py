"""Tables of ensembles' results: means per variant, and paired differences with t intervals.

python -m vmoe_prc.study.ensemble.tables DIR/main.jsonl --reference="V-MoE, batch balance"
"""

import argparse
import json
import operator
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.figures.agreement_bars import AgreementBar, agreement_figure, mean_bar
from vmoe_prc.report.figures import differences_figure
from vmoe_prc.report.formats import to_markdown
from vmoe_prc.report.paired import DifferenceTable, compare_by_seed
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
      columns: Names in `COLUMNS`, or of shares and losses of the runs.
    """
    rows = [["", "n", *columns]]
    for name, runs in _by_variant(results).items():
        cells = []
        for column in columns:
            values = np.array([_percentages(run, columns)[column] for run in runs.values()])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}")
        rows.append([name, str(len(runs)), *cells])
    return rows


def differences_table(
    results: Sequence[Result], reference: str, columns: Sequence[str] = tuple(COLUMNS)
) -> DifferenceTable:
    """Compares each variant with the reference over the seeds that both have, in points.

    Args:
      results: Runs; the runs of a variant have different seeds.
      reference: Name of the variant that is subtracted.
      columns: Names in `COLUMNS`, or of shares and losses of the runs.

    Raises:
      ConfigError: If no run is of the reference, or a variant has a seed twice.
    """
    variants = _by_variant(results)
    if reference not in variants:
        allowed = f"expected one of {', '.join(variants)}"
        raise ConfigError("--reference", reference, allowed, nearest(reference, variants))
    by_seed = {
        name: {seed: _percentages(run, columns) for seed, run in runs.items()}
        for name, runs in variants.items()
    }
    rows = [
        compare_by_seed(name, runs, by_seed[reference])
        for name, runs in by_seed.items()
        if name != reference
    ]
    title = f"Differences from {reference}, paired over seeds"
    return DifferenceTable(title, tuple(columns), tuple(row for row in rows if row.seeds))


def agreement_bars(results: Sequence[Result]) -> list[AgreementBar]:
    """Returns the agreement of each variant in parts, averaged over its seeds."""
    return [mean_bar(name, [*runs.values()]) for name, runs in _by_variant(results).items()]


def _percentages(run: Result, columns: Sequence[str]) -> dict[str, float]:
    return {name: 100 * COLUMNS.get(name, operator.itemgetter(name))(run) for name in columns}


def _by_variant(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Groups runs by variant and seed.

    Raises:
      ConfigError: If a variant has a seed twice, which would count as two.
    """
    variants: dict[str, dict[int, Result]] = {}
    for run in results:
        name, seed = run.get("label") or run["variant"], run["seed"]
        runs = variants.setdefault(name, {})
        if seed in runs:
            raise ConfigError("results", name, f"has seed {seed} twice")
        runs[seed] = run
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
        default=list(COLUMNS),
        metavar="COLUMN",
        help=f"what to show, by default {', '.join(map(repr, COLUMNS))}; or shares and losses "
        "of the lines, such as encoderblock_0/place",
    )
    parser.add_argument(
        "--differences", type=pathlib.Path, metavar="FILE", help="picture of the differences"
    )
    parser.add_argument(
        "--agreement", type=pathlib.Path, metavar="FILE", help="picture of agreement in parts"
    )
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    if args.differences and not args.reference:
        parser.error("--differences needs --reference")
    return run_program(lambda: _print_tables(args), args.traceback)


def _print_tables(args: argparse.Namespace) -> None:
    results = [json.loads(line) for line in args.results.read_text().splitlines()]
    # Shares and losses; seeds and steps are integers, names are strings.
    fields = [{name for name, x in run.items() if isinstance(x, float)} for run in results]
    allowed = [*COLUMNS, *sorted(set.intersection(*fields) if fields else ())]
    for column in args.columns:
        if column not in allowed:
            expected = f"expected one of {', '.join(COLUMNS)}, or a share or loss of all lines"
            raise ConfigError("--columns", column, expected, nearest(column, allowed))
    print("\n".join(markdown_lines(means_table(results, args.columns))))
    if args.reference:
        differences = differences_table(results, args.reference, args.columns)
        print(f"\n{to_markdown([differences])}")
        if args.differences:
            differences_figure(differences).savefig(args.differences, dpi=150)
    if args.agreement:
        agreement_figure(agreement_bars(results)).savefig(args.agreement, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
