"""Looks into the routing of trained models: `python -m vmoe_prc.analyze table --workdir=DIR`."""

import argparse
import pathlib
import sys

from vmoe_prc.config import ConfigError


def table(args: argparse.Namespace) -> None:
    """Writes the routing table of a split as Parquet."""
    from vmoe_prc.analysis.opened_run import open_run
    from vmoe_prc.analysis.routing_table import write_routing_table

    run = open_run(args.workdir)
    split = run.choose_split(args.split)
    path = _output(args, f"routing_{split}.parquet")
    rows = write_routing_table(run, split, path, blocks=args.block, k=args.k)
    print(f"{path}: {rows:,} rows")


def agreement(args: argparse.Namespace) -> None:
    """Prints how often two views agree on the experts, with intervals over images."""
    from vmoe_prc.analysis.agreement import agreement_table
    from vmoe_prc.analysis.opened_run import open_run

    run = open_run(args.workdir)
    split = run.choose_split(args.split, two_views=True)
    frame = agreement_table(run, split, args.block)
    path = _output(args, f"agreement_{split}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    print(f"Agreement of two views of {split}, % with 95% interval over images")
    print(frame.to_string(index=False, float_format=lambda x: f"{100 * x:.2f}"))
    print(path)


def _output(args: argparse.Namespace, name: str) -> pathlib.Path:
    return args.output or pathlib.Path(args.workdir) / "analysis" / name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vmoe_prc.analyze", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for function in (table, agreement):
        command = commands.add_parser(
            function.__name__, help=function.__doc__, description=function.__doc__
        )
        command.set_defaults(function=function)
        command.add_argument("--workdir", required=True, help="the work directory of a run")
        command.add_argument("--split", help="a name in config.dataset; by default a test split")
        command.add_argument("--block", action="append", help="such as encoderblock_3; repeatable")
        command.add_argument("--output", type=pathlib.Path, help="by default in WORKDIR/analysis")
        if function is table:
            command.add_argument("--k", type=int, help="choices a token; by default all")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.checkpoints.orbax import CheckpointError

    try:
        args.function(args)
    except (ConfigError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
