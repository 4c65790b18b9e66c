"""Trains and evaluates a model.

    python -m vmoe_prc.main --config=configs/digits_prc.py:k=1,prc=off --config.seed=1

A run whose work directory is there already is resumed.
"""

import argparse
import contextlib
import datetime
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from vmoe_prc.config import Config, ConfigError, NotPreparedError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.config.reference import explain
from vmoe_prc.errors import PreemptedError
from vmoe_prc.runtime.arguments import ArgumentParser, add_process_arguments, process_arguments
from vmoe_prc.runtime.programs import add_traceback_argument, run_program, setup


def new_workdir(config_file: str) -> pathlib.Path:
    """Chooses a directory under `workdir/`, named by the config, its arguments and the time.

    Args:
      config_file: The value of `--config`, such as `configs/digits_prc.py:k=1`.
    """
    path, _, arguments = config_file.partition(":")
    name = re.sub(r"[^\w.=-]+", "-", "-".join(filter(None, [pathlib.Path(path).stem, arguments])))
    return pathlib.Path("workdir") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def predict_command(config: Config, workdir: str | pathlib.Path) -> str | None:
    """Returns the command that classifies images with a run; None if it evaluates no single images.

    Args:
      config: The completed configuration.
      workdir: Directory of the run.
    """
    from vmoe_prc.predict.preprocessing import evaluation_preprocessing

    try:
        evaluation_preprocessing(config)
    except ConfigError:
        return None
    return f"python -m vmoe_prc.predict {shlex.quote(str(workdir))} IMAGE"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see `runtime.programs`.

    Args:
      argv: Arguments; None for `sys.argv[1:]`.
    """

    def program() -> None:
        remaining, changes = split_config_flags(sys.argv[1:] if argv is None else argv)
        _train(_parser().parse_args(remaining), changes)

    return run_program(program)


def _train(args: argparse.Namespace, changes: dict[str, Any]) -> None:
    def read(prepare: bool) -> ml_collections.ConfigDict:
        config = read_config_file(args.config, "--config", prepare=prepare)
        return complete(override(config, changes))

    if args.explain is not None:
        print(explain(args.explain, read(prepare=False)))
        return
    config = None
    # Errors in it are reported before the processes meet.
    with contextlib.suppress(NotPreparedError):
        config = read(prepare=False)
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.runtime import processes
    from vmoe_prc.runtime.logs import setup_logging
    from vmoe_prc.train import loop

    setup()
    processes.connect(*process_arguments(args))
    setup_logging(quiet=not processes.is_main_process())
    with processes.raise_everywhere(), processes.process_zero_first():
        if config is None:
            config = read(prepare=True)
    workdir = args.workdir
    if workdir is None:
        workdir = processes.broadcast_from_process_zero(str(new_workdir(args.config)))
    try:
        summary = loop.train_and_evaluate(config, workdir)
    except PreemptedError as error:
        if args.workdir is None:
            raise PreemptedError(error.step, workdir) from None
        raise
    if processes.is_main_process():
        print(summary)
        if command := predict_command(config, workdir):
            print(f"\nTo classify images:\n  {command}")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.main",
        description=__doc__,
        epilog="Any field of the configuration can be set: --config.seed=1 --config.mixup=None. "
        "docs/CONFIG.md lists the fields.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENTS]",
        help="the recipe: a Python file with get_config(), or the name of a recipe of ours",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where checkpoints and metrics go; by default a new directory under workdir/",
    )
    parser.add_argument(
        "--explain",
        metavar="SECTION",
        help="instead of training, print the fields of a section, such as optimizer.gradient_clip, "
        "with types, defaults and their values in this configuration",
    )
    add_process_arguments(parser)
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
