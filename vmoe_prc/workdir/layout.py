"""Names of files in a work directory."""

CONFIG_FILE = "config.json"
# Configurations that earlier steps ran with, and the data; see `history`.
CONFIG_HISTORY_FILE = "config_history.json"
DATA_FILE = "data.json"
# Written when the run has ended, and removed when it is resumed.
SUMMARY_FILE = "summary.txt"
CHECKPOINT_FOLDER = "checkpoints"
# An exported folder, which has a `config.json` as well.
PARAMS_FILE = "model.safetensors"
CLASSES_FILE = "classes.json"
PREPROCESSING_FILE = "preprocessing.json"
CARD_FILE = "README.md"
# Compiled programs of a run of several processes.
COMPILATION_CACHE_FOLDER = "compilation_cache"
# Log lines of each process, and the tracebacks of its errors.
LOG_FILE = "train-{process}.log"
TENSORBOARD_FOLDER = "tensorboard"


def figure_file(name: str) -> str:
    """Returns the file of a figure that an evaluator draws, such as 'routing'."""
    return f"{name.replace('/', '-')}.png"
