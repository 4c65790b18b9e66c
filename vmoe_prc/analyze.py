"""Analyses the routing of trained models: `python -m vmoe_prc.analyze table --workdir=DIR`."""

import argparse
import pathlib
import sys
from collections.abc import Callable

from vmoe_prc.analysis import commands
from vmoe_prc.runtime.arguments import ArgumentParser, add_process_arguments, process_arguments
from vmoe_prc.runtime.programs import add_traceback_argument, run_program, setup


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m vmoe_prc.analyze", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable, *, several: bool = False) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            function.__name__, help=function.__doc__, description=function.__doc__
        )
        command.set_defaults(function=function, several=several)
        again = "; repeat it to compare runs" if several else ""
        command.add_argument(
            "--workdir", action="append", default=[], help=f"work directory of a run{again}"
        )
        command.add_argument(
            "--checkpoint",
            action="append",
            default=[],
            help="instead of a run, or in addition: prefix of a released V-MoE checkpoint, or a "
            ".safetensors or .npz file",
        )
        command.add_argument(
            "--config", help="config file of the checkpoints, such as configs/imagenet_prc.py:k=2"
        )
        command.add_argument("--split", help="a name in config.dataset; by default a test split")
        command.add_argument("--block", action="append", help="such as encoderblock_3; repeatable")
        add_process_arguments(command)
        add_traceback_argument(command)
        command.add_argument("--output", type=pathlib.Path, help="by default in WORKDIR/analysis")
        return command

    add(commands.table).add_argument("--k", type=int, help="choices per token; by default all")
    add(commands.agreement)
    add(commands.robustness, several=True).add_argument(
        "--perturbation",
        action="append",
        help="such as shift, shift=0,1,2, fgsm or imagenet_c; repeatable",
    )
    add(commands.specialisation)
    command = add(commands.pictures, several=True)
    command.add_argument("--images", type=int, default=4, help="images to draw, 4 by default")
    command.add_argument(
        "--perturbation", action="append", help="such as shift or shift=0,1,2; repeatable"
    )
    noise = "standard deviation of the noise, pixel range 1; 0.3 by default"
    for function in (commands.swap, commands.ramp):
        command = add(function)
        command.add_argument("--noise", type=float, default=0.3, help=noise)
        command.add_argument("--seed", type=int, default=0, help="0 by default")
    command.add_argument("--images", type=int, default=24, help="images to follow, 24 by default")
    command.add_argument("--levels", type=int, default=128, help="levels of noise, 128 by default")
    add(commands.capacity)
    add(commands.information)
    add(commands.margins)
    add(commands.stability, several=True).add_argument(
        "--step",
        type=int,
        action="append",
        help="step of a checkpoint that each run kept; repeatable; the newest one by default",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    setup()

    def program() -> None:
        from vmoe_prc.runtime import processes
        from vmoe_prc.runtime.logs import setup_logging

        processes.connect(*process_arguments(args))
        setup_logging(quiet=not processes.is_main_process())
        args.function(args)

    return run_program(program, args.traceback)


if __name__ == "__main__":
    sys.exit(main())
