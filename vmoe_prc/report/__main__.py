"""Tables of finished runs: `python -m vmoe_prc.report workdir/`; a page of them: `--html`."""

import argparse
import pathlib
import sys

from vmoe_prc.report.experiments import group_runs
from vmoe_prc.report.formats import FORMATS
from vmoe_prc.report.runs import ReportError, find_runs
from vmoe_prc.report.tables import make_tables
from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

PAGE_FILE = "report.html"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_intermixed_args(argv)
    return run_program(lambda: _report(args), args.traceback)


def _report(args: argparse.Namespace) -> None:
    if args.html is not None and (args.format or args.output):
        raise ReportError("--html goes without --format and --output")
    runs, warnings = find_runs(args.workdir)
    experiments, duplicates = group_runs(runs)
    warnings += duplicates
    if args.html is not None:
        # Imported here: text need not wait for JAX and matplotlib.
        from vmoe_prc.report.gather import write_page

        path = args.html or pathlib.Path(args.workdir[0]) / PAGE_FILE
        warnings = write_page(path, experiments, warnings)
        print(path)
    else:
        text = FORMATS[args.format or "text"](make_tables(experiments))
        if args.output:
            args.output.write_text(text + "\n")
        else:
            print(text)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.report",
        description="Mean ± sample standard deviation over seeds, next to published figures.",
    )
    parser.add_argument(
        "workdir", nargs="+", help="a work directory, or a directory of work directories"
    )
    parser.add_argument("--format", choices=FORMATS, help="of the tables; by default text")
    parser.add_argument("--output", type=pathlib.Path, help="a file, instead of the terminal")
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="write one page with tables, curves and pictures instead; "
        f"by default {PAGE_FILE} in the first directory",
    )
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
