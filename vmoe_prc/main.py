"""Trains and evaluates a model: `python -m vmoe_prc.main --config=configs/digits_prc.py`."""

import datetime
import functools
import pathlib
import re
import shlex
import sys
from typing import Any

from absl import app, flags

from vmoe_prc.config import Config, ConfigError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.config.reference import explain
from vmoe_prc.errors import PreemptedError
from vmoe_prc.runtime.arguments import with_underscores
from vmoe_prc.runtime.programs import run_program, setup

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The recipe: a Python file with get_config(), or the name of a recipe of ours, and its "
    "arguments after a colon, such as configs/digits_prc.py:k=1,prc=off. Any field can be set: "
    "--config.seed=1 --config.mixup=None; docs/CONFIG.md lists the fields.",
)
_EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "Prints the fields of a section, such as optimizer.gradient_clip, with types, defaults and "
    "their values in this configuration, instead of training.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints and metrics go; a run that is there already is resumed. "
    "By default a new directory under workdir/.",
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0 where a run has several processes and JAX does not find them, as "
    "it does on TPU pods, under Slurm and Open MPI.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes. A run does not start with another number; 1: this process alone.",
    lower_bound=1,
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0.", lower_bound=0
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_float(
    "initialization_timeout",
    900,
    "Seconds that the processes wait for each other at --coordinator_address.",
    lower_bound=1,
)
# Both programs may be imported into one process, which has one table of flags.
flags.DEFINE_bool("traceback", False, "Show the traceback of every error.", allow_override=True)


def new_workdir(config_file: str) -> pathlib.Path:
    """Chooses a directory under `workdir/`, named by the config, its arguments and the time.

    Args:
      config_file: The value of `--config`, such as `configs/digits_prc.py:k=1`.
    """
    path, _, arguments = config_file.partition(":")
    name = re.sub(r"[^\w.=-]+", "-", "-".join(filter(None, [pathlib.Path(path).stem, arguments])))
    return pathlib.Path("workdir") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def predict_command(config: Config, workdir: str | pathlib.Path) -> str | None:
    """Returns the command that classifies images with a run; None if it evaluates none alone.

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


def main(argv: list[str], changes: dict[str, Any]):
    """Runs the training that the flags ask for.

    Args:
      argv: Arguments that are no flags: only the name of the program.
      changes: Fields that the flags set.
    """
    if len(argv) > 1:
        raise ConfigError("command line", " ".join(argv[1:]), "unexpected arguments")
    if _CONFIG.value is None:
        raise ConfigError("--config", None, "missing; expected a config file or a recipe")
    config = complete(override(read_config_file(_CONFIG.value, "--config"), changes))
    if _EXPLAIN.value is not None:
        print(explain(_EXPLAIN.value, config))
        return
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.runtime import processes
    from vmoe_prc.runtime.logs import setup_logging
    from vmoe_prc.train import loop

    setup()
    processes.connect(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _INITIALIZATION_TIMEOUT.value,
    )
    setup_logging(quiet=not processes.is_main_process())
    workdir = _WORKDIR.value
    if workdir is None:
        chosen = new_workdir(_CONFIG.value)
        workdir = processes.broadcast_from_process_zero(str(chosen))
    try:
        summary = loop.train_and_evaluate(config, workdir)
    except PreemptedError as error:
        if _WORKDIR.value is None:
            raise PreemptedError(error.step, workdir) from None
        raise
    if processes.is_main_process():
        print(summary)
        if command := predict_command(config, workdir):
            print(f"\nTo classify images:\n  {command}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses all flags except fields; a wrong flag raises a `ConfigError`."""
    try:
        return flags.FLAGS(with_underscores(argv))
    except flags.Error as error:
        message = " ".join(str(error).split())
        raise ConfigError("command line", " ".join(argv[1:]), message) from None


def run(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, see `runtime.programs`.

    Args:
      argv: Program name and arguments; None for `sys.argv`.
    """

    def program() -> None:
        remaining, changes = split_config_flags(sys.argv if argv is None else argv)
        app.run(functools.partial(main, changes=changes), remaining, flags_parser=parse_flags)

    return run_program(program)


if __name__ == "__main__":
    sys.exit(run())
