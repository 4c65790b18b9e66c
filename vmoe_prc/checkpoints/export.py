"""Writes the parameters of a run for other programs.

python -m vmoe_prc.checkpoints.export workdir/digits model.safetensors
"""

import argparse
import sys

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.params import FORMATS, read_params, write_params


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vmoe_prc.checkpoints.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help=FORMATS)
    parser.add_argument("target", help="FILE.safetensors, or the prefix of a V-MoE checkpoint")
    args = parser.parse_args(argv)
    try:
        params = read_params(args.source)
        write_params(args.target, params)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(x.size for x in params.values())
    print(f"{args.target}: {len(params)} arrays, {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
