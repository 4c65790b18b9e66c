"""Prepares data sets for training.

    python -m vmoe_prc.data.prepare cifar10
    python -m vmoe_prc.data.prepare fashion_mnist --from=/usr/share/datasets/fashion-mnist

Files that are in the directory `--from` are used instead of being downloaded. Numbers of examples
and names of files are compared with the official ones; `--partial` accepts fewer.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmoe_prc.runtime.arguments import ArgumentParser, at_least
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

if TYPE_CHECKING:
    from vmoe_prc.data.builders import Builder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see `runtime.programs`.

    Args:
      argv: Arguments; None for `sys.argv[1:]`.
    """
    args = _parser().parse_intermixed_args(argv)
    return run_program(lambda: _prepare(args), args.traceback)


def _prepare(args: argparse.Namespace) -> None:
    # Imported here so that --help need not wait for TensorFlow.
    from vmoe_prc.data.preparation import prepare
    from vmoe_prc.data.resized import resize_dataset
    from vmoe_prc.runtime.logs import setup_logging

    setup_logging()
    for name in args.name:
        builder = prepare(
            name, args.files, args.data_dir, partial=args.partial, processes=args.processes
        )
        _print_splits(builder)
        if args.short_side is not None:
            _print_splits(resize_dataset(builder, args.short_side, args.quality))


def _print_splits(builder: "Builder") -> None:
    for split, info in builder.info.splits.items():
        size = f"{info.num_examples:,} examples, {info.num_bytes / 1e6:,.1f} MB"
        print(f"{builder.name} {split}: {size} in {builder.data_path}")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m vmoe_prc.data.prepare", description=__doc__)
    parser.add_argument("name", nargs="+", help="a data set, such as cifar10")
    parser.add_argument("--from", dest="files", metavar="DIR", help="files of the data set")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where to write; by default TFDS's own place"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept fewer examples than the data set has"
    )
    parser.add_argument(
        "--processes",
        type=at_least(1),
        help="processes that write class folders and ImageNet-21k; by default one for each core",
    )
    parser.add_argument(
        "--short-side",
        type=at_least(1),
        metavar="PIXELS",
        help="also write a copy whose images have a shorter side of at most this many pixels",
    )
    parser.add_argument(
        "--quality",
        type=int,
        choices=range(1, 101),
        default=95,
        metavar="N",
        help="quality of the JPEGs of --short-side, 1 to 100, 95 by default",
    )
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
