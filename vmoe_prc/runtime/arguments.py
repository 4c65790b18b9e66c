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
        return super().parse_known_args([_with_dashes(arg) for arg in args], namespace)


def _with_dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
