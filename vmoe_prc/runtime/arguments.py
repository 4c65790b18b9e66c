"""Command lines in one style: options are named with dashes, and understood with underscores."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vmoe_prc.config.errors import nearest


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names values by what they are: N for a number, else the last word of the option."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        # `_number` makes functions named int or float.
        if getattr(action.type, "__name__", None) in ("int", "float"):
            return "N"
        return action.dest.rpartition("_")[-1].upper()

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose options may be written with underscores: `--dry_run` is `--dry-run`.

    Options are declared with dashes. Commands (`add_subparsers`) get parsers of this class. An
    error is one line, as the errors of `run_program` are.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):
        """Parses arguments, with underscores in the names of options turned into dashes."""
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_dashes(arg) for arg in args], namespace)

    def error(self, message: str):
        """Ends the program with status 2 and one line, with an option like an unknown one."""
        unknown = message.partition("unrecognized arguments: ")[2].partition("=")[0]
        hint = nearest(unknown, _options(self)) if unknown.startswith("--") else None
        hint = f"; did you mean {hint!r}?" if hint else f"; {self.prog} --help lists the options"
        self.exit(2, f"error: {message}{hint}\n")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields the options of a parser and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)


def at_least(minimum: int, kind: type = int) -> Callable[[str], Any]:
    """Returns a `type` of arguments: numbers of a kind, int or float, from `minimum` on."""
    return _number(kind, lambda value: value >= minimum, f"from {minimum} on")


def above_zero(kind: type = int) -> Callable[[str], Any]:
    """Returns a `type` of arguments: numbers of a kind, int or float, above 0."""
    return _number(kind, lambda value: value > 0, "above 0")


def _number(kind: type, fits: Callable[[Any], bool], which: str) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text}: expected a number {which}")
        return value

    # Errors of `kind` name the type: "invalid int value".
    number.__name__ = kind.__name__
    return number


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `processes.connect`, as options that `main` has, too."""
    group = parser.add_argument_group(
        "several processes, where JAX does not find them as it does on TPU pods and under Slurm"
    )
    group.add_argument("--coordinator-address", metavar="HOST:PORT", help="of process 0")
    group.add_argument(
        "--num-processes",
        type=at_least(1),
        help="do not start with another number; 1: only this process",
    )
    group.add_argument("--process-id", type=at_least(0), help="of this process, from 0")
    group.add_argument(
        "--initialization-timeout",
        type=at_least(1, float),
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


def _with_dashes(argument: str) -> str:
    """Replaces underscores in the name of an option."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
