"""Names of the files in a work directory that several parts of the program know."""

CONFIG_FILE = "config.json"
# Written when the run has ended, and removed when it goes on.
SUMMARY_FILE = "summary.txt"
CHECKPOINT_FOLDER = "checkpoints"
PICTURE_FILE = "routing.png"
