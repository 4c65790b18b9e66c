"""The work directory: names that several parts of the program know, and its `config.json`."""

import json

import ml_collections
from absl import logging
from etils import epath

from vmoe_prc.config import flatten
from vmoe_prc.workdir.atomic import atomic_write

CONFIG_FILE = "config.json"
# Written when the run has ended, and removed when it goes on.
SUMMARY_FILE = "summary.txt"
CHECKPOINT_FOLDER = "checkpoints"
# Compiled programs of a run of several processes.
COMPILATION_CACHE_FOLDER = "compilation_cache"
TENSORBOARD_FOLDER = "tensorboard"


def figure_file(name: str) -> str:
    """Returns the file of a figure that an evaluator draws, such as 'routing'."""
    return f"{name.replace('/', '-')}.png"


def save_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Keeps the configuration beside the run, and tells how it differs from an earlier one.

    Args:
      config: The completed configuration.
      workdir: Directory of the run, made if missing.
    """
    path = workdir / CONFIG_FILE
    text = json.dumps(config.to_dict(), indent=2, default=list)
    if path.exists():
        earlier = flatten(json.loads(path.read_text()))
        now = flatten(json.loads(text))
        for field in sorted(earlier.keys() | now.keys()):
            if earlier.get(field) != now.get(field):
                logging.warning(
                    "config.%s was %r when this run began, and is now %r",
                    field,
                    earlier.get(field),
                    now.get(field),
                )
    with atomic_write(path) as temporary:
        temporary.write_text(text)
