"""Trains the arms of a study with several seeds and compares them.

`python -m vmoe_prc.study --study=configs/studies/digits.py`; run the same command again to
resume.
"""

import argparse
import json
import sys

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.runtime.arguments import ArgumentParser, add_process_arguments, process_arguments
from vmoe_prc.runtime.programs import add_traceback_argument, run_program, setup
from vmoe_prc.study.plan import PlannedRun, Study, read_study
from vmoe_prc.study.results import write_results
from vmoe_prc.study.runner import carry_out, execute, failure
from vmoe_prc.workdir.paths import user_path


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 if any run failed."""
    args = _parser().parse_args(argv)
    return run_program(lambda: _study(args), args.traceback)


def _study(args: argparse.Namespace) -> int:
    study = read_study(args.study, args.workdir)
    if args.dry_run:
        return _list(study, args.format)
    if args.collect:
        print(write_results(study) or "no run is done")
        return 0
    if args.only:
        return _execute(study, _find(study, args.only), process_arguments(args))
    try:
        return _carry_out(study)
    except KeyboardInterrupt:
        print("run the same command to resume", file=sys.stderr)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m vmoe_prc.study", description=__doc__)
    parser.add_argument(
        "--study",
        required=True,
        metavar="FILE[:ARGUMENTS]",
        help="a Python file with get_config(), such as configs/studies/digits.py:seeds=5",
    )
    parser.add_argument(
        "--workdir",
        type=user_path,
        help="local or in an object store such as gs://; by default workdir/ and the name of the "
        "file",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state")
    parser.add_argument(
        "--format", choices=["text", "json"], default="text", help="of the list of --dry-run"
    )
    parser.add_argument(
        "--only",
        metavar="ARM/seed=N",
        help="carry out only this run, in this process, as one job of an array does, or in several "
        "processes; or the run of this index in the list of --dry-run, from 0",
    )
    parser.add_argument(
        "--collect", action="store_true", help="write the tables of the runs that are done"
    )
    add_process_arguments(parser)
    add_traceback_argument(parser)
    return parser


def _list(study: Study, form: str) -> int:
    if form == "json":
        rows = [
            {"name": run.name, "state": study.state(run), "workdir": str(run.workdir)}
            for run in study.runs
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for run in study.runs:
        print(f"{study.state(run):6}  {run.name:30}  {run.workdir}")
    return 0


def _find(study: Study, name: str) -> PlannedRun:
    runs = {run.name: run for run in study.runs}
    if name.isdecimal() and int(name) < len(study.runs):
        return study.runs[int(name)]
    if name not in runs:
        allowed = f"no such run; allowed: {', '.join(runs)}"
        raise ConfigError("--only", name, allowed, nearest(name, runs))
    return runs[name]


def _execute(study: Study, run: PlannedRun, processes: tuple) -> int:
    setup()
    from vmoe_prc.runtime.logs import setup_logging
    from vmoe_prc.runtime.processes import connect, is_main_process

    connect(*processes)
    setup_logging(quiet=not is_main_process())
    execute(study, run)
    return 0


def _carry_out(study: Study) -> int:
    failed = carry_out(study, lambda: write_results(study), lambda line: print(line, flush=True))
    print(f"\n{write_results(study)}\n\n{study.workdir}/tables.md")
    for run in failed:
        print(f"failed: {run.name}: {failure(run)}", file=sys.stderr)
    if failed:
        print("the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
