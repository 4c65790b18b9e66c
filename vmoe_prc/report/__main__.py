"""Tables of finished runs: `python -m vmoe_prc.report workdir/`."""

import argparse
import pathlib
import sys

from vmoe_prc.report.formats import FORMATS
from vmoe_prc.report.runs import ReportError, find_runs
from vmoe_prc.report.tables import make_tables


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vmoe_prc.report",
        description="Mean ± sample standard deviation over seeds, published figures beside.",
    )
    parser.add_argument(
        "workdir", nargs="+", help="a work directory, or a directory of work directories"
    )
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--output", type=pathlib.Path, help="a file, instead of the terminal")
    args = parser.parse_args(argv)
    try:
        runs, unfinished = find_runs(args.workdir)
        tables, duplicates = make_tables(runs)
        text = FORMATS[args.format](tables)
        if args.output:
            args.output.write_text(text + "\n")
        else:
            print(text)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in unfinished + duplicates:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
