"""Writes the parameters of a run for other programs.

python -m vmoe_prc.checkpoints.export workdir/digits model.safetensors
"""

import argparse
import sys

from vmoe_prc.checkpoints.metadata import read_metadata
from vmoe_prc.checkpoints.params import FORMATS, read_params, write_params
from vmoe_prc.runtime.programs import add_traceback_argument, run_program


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vmoe_prc.checkpoints.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help=FORMATS)
    parser.add_argument("target", help="FILE.safetensors, or the prefix of a V-MoE checkpoint")
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    return run_program(lambda: export(args.source, args.target), args.traceback)


def export(source: str, target: str) -> None:
    """Writes the parameters of a run or checkpoint to another file, and prints how many.

    The configuration and the names of the classes go with them, see `metadata`.
    """
    params, metadata = read_params(source), read_metadata(source)
    write_params(target, params, metadata)
    count = sum(x.size for x in params.values())
    classes = metadata.get("classes")
    named = f", {len(classes)} named classes" if classes else ""
    print(f"{target}: {len(params)} arrays, {count:,} parameters{named}")


if __name__ == "__main__":
    sys.exit(main())
