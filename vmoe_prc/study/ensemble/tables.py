"""Tables of ensembles' results: means per variant, and paired differences with t intervals.

python -m vmoe_prc.study.ensemble.tables DIR/main.jsonl --reference="V-MoE, batch balance"
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.workdir.text_tables import markdown_lines

Result = Mapping[str, Any]
# Title, and the value of a run, a share in [0, 1] that is printed in %.
COLUMNS = {
    "accuracy": lambda r: r["accuracy"],
    "D_view": lambda r: r["accuracy/own"] - r["accuracy/other_view"],
    "D_random": lambda r: r["accuracy/own"] - r["accuracy/random"],
    "top-1 agreement": lambda r: r["top1"],
    "chance": lambda r: r["chance"],
    "image": lambda r: r["image"],
    "place": lambda r: r["place"],
    "kappa_place": lambda r: r["kappa_place"],
    "experts in use": lambda r: r["use"],
}


def means_table(results: Sequence[Result]) -> list[list[str]]:
    """Returns a row per variant: mean ± standard deviation over its seeds, in %."""
    rows = [["", "n", *COLUMNS]]
    for name, runs in _by_variant(results).items():
        cells = []
        for value in COLUMNS.values():
            values = 100 * np.array([value(run) for run in runs])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}")
        rows.append([name, str(len(runs)), *cells])
    return rows


def differences_table(results: Sequence[Result], reference: str) -> list[list[str]]:
    """Returns a row per variant: difference from the reference over the seeds of both, in points.

    Args:
      results: Runs; the runs of a variant have different seeds.
      reference: Name of the variant that is subtracted.

    Returns:
      Mean differences with 95% t intervals of at least three pairs, and a header.

    Raises:
      ValueError: If no run is of the reference.
    """
    variants = _by_variant(results)
    if reference not in variants:
        raise ValueError(f"reference = {reference!r}: expected one of {', '.join(variants)}")
    by_seed = {run["seed"]: run for run in variants[reference]}
    rows = [["minus " + reference, "n", *COLUMNS]]
    for name, runs in variants.items():
        pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
        if name == reference or not pairs:
            continue
        cells = []
        for value in COLUMNS.values():
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
    args = parser.parse_args(argv)
    results = [json.loads(line) for line in args.results.read_text().splitlines()]
    print("\n".join(markdown_lines(means_table(results))))
    if args.reference:
        print("\n".join(["", *markdown_lines(differences_table(results, args.reference))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
