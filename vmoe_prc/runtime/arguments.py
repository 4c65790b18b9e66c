"""Command lines in one style: options are named with dashes, and understood with underscores."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose options may be written with underscores: `--dry_run` is `--dry-run`.

    Options are declared with dashes. Commands (`add_subparsers`) get parsers of this class.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):
        """Parses arguments, with underscores in the names of options turned into dashes."""
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_renamed(arg, "_", "-") for arg in args], namespace)


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `processes.connect`, as options that `main` has, too."""
    group = parser.add_argument_group(
        "several processes, where JAX does not find them as it does on TPU pods and under Slurm"
    )
    group.add_argument("--coordinator-address", metavar="HOST:PORT", help="of process 0")
    group.add_argument(
        "--num-processes", type=int, metavar="N", help="do not start with another number"
    )
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument(
        "--initialization-timeout",
        type=float,
        default=900,
        metavar="SECONDS",
        help="how long the processes wait for each other at the address, 900 by default",
    )


def process_arguments(args: argparse.Namespace) -> tuple[str | None, int | None, int | None, float]:
    """Returns what `add_process_arguments` has parsed, as `processes.connect` takes it."""
    return (
        args.coordinator_address,
        args.num_processes,
        args.process_id,
        args.initialization_timeout,
    )


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Returns a command line for absl's flags, whose names have underscores instead of dashes."""
    return [_renamed(argument, "-", "_") for argument in argv]


def _renamed(argument: str, old: str, new: str) -> str:
    """Replaces letters in the name of an option."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace(old, new) + equals + value
