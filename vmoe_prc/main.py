"""Trains and evaluates a model: `python -m vmoe_prc.main --config=configs/digits_prc.py`."""

import datetime
import pathlib
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from vmoe_prc.config import ConfigError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe: a Python file with get_config(), and its arguments after a colon, such as "
    "configs/digits_prc.py:k=1,prc=off. Any field can be set: --config.seed=1",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints and metrics go; a run that is there already is resumed. "
    "By default a new directory under workdir/.",
)


def new_workdir(config_file: str) -> pathlib.Path:
    """Chooses a directory under `workdir/`, named by the config, its arguments and the time.

    Args:
      config_file: The value of `--config`, such as `configs/digits_prc.py:k=1`.
    """
    path, _, arguments = config_file.partition(":")
    name = re.sub(r"[^\w.=-]+", "-", "-".join(filter(None, [pathlib.Path(path).stem, arguments])))
    return pathlib.Path("workdir") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def main(argv: list[str]):
    """Runs the training that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc import loop
    from vmoe_prc.checkpoints.orbax import CheckpointError

    workdir = _WORKDIR.value
    if workdir is None:
        workdir = new_workdir(flags.FLAGS["config"].config_filename)
        print(f"Work directory: {workdir}", flush=True)
    try:
        print(loop.train_and_evaluate(_CONFIG.value, workdir))
    except CheckpointError as error:
        raise ConfigError("--workdir", str(workdir), str(error)) from None


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them becomes a `ConfigError`."""
    try:
        remaining = flags.FLAGS(argv)
        # ml_collections tells of a file that is missing only when the config is used.
        _ = _CONFIG.value.seed
        return remaining
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        # ml_collections wraps what the config file itself found wrong.
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        known = next((e for e in causes if isinstance(e, ConfigError)), None)
        if known is not None:
            raise known from None
        message = " ".join(str(error).split())
        raise ConfigError("command line", " ".join(argv[1:]), message) from None


def run():
    """Entry point: what cannot be used becomes one line on stderr and exit status 2."""
    flags.mark_flag_as_required("config")
    try:
        app.run(main, flags_parser=parse_flags)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
