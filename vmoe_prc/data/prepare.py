"""Prepares data sets for training.

    python -m vmoe_prc.data.prepare cifar10
    python -m vmoe_prc.data.prepare fashion_mnist --from=/usr/share/datasets/fashion-mnist

Files that are in the directory `--from` are used instead of being downloaded. Numbers of examples
and names of files are compared with the official ones; `--partial` accepts fewer.
"""

import sys
from typing import TYPE_CHECKING

from absl import app, flags

from vmoe_prc.runtime.arguments import with_underscores
from vmoe_prc.runtime.programs import run_program

if TYPE_CHECKING:
    from vmoe_prc.data.builders import Builder

_FROM = flags.DEFINE_string("from", None, "Directory with files of the data set.")
_PARTIAL = flags.DEFINE_bool("partial", False, "Accept fewer examples than the data set has.")
# Both programs may be imported into one process, which has one table of flags.
flags.DEFINE_bool("traceback", False, "Show the traceback of every error.", allow_override=True)
_SHORT_SIDE = flags.DEFINE_integer(
    "short_side",
    None,
    "Also write a copy whose images have a shorter side of at most this many pixels.",
    lower_bound=1,
)
_QUALITY = flags.DEFINE_integer(
    "quality", 95, "Quality of the JPEGs of --short_side.", lower_bound=1, upper_bound=100
)
_PROCESSES = flags.DEFINE_integer(
    "processes",
    None,
    "Processes that write class folders and ImageNet-21k; by default one for each core.",
    lower_bound=1,
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where to write; by default TFDS's own place.")


def _print_splits(builder: "Builder") -> None:
    for split, info in builder.info.splits.items():
        size = f"{info.num_examples:,} examples, {info.num_bytes / 1e6:,.1f} MB"
        print(f"{builder.name} {split}: {size} in {builder.data_path}")


def main(argv: list[str]) -> None:
    """Prepares the data sets that are named."""
    if len(argv) < 2:
        raise app.UsageError("name a data set, such as cifar10")
    # Imported here: `--help` needs no TensorFlow.
    from vmoe_prc.data.preparation import prepare
    from vmoe_prc.data.resized import resize_dataset
    from vmoe_prc.runtime.logs import setup_logging

    setup_logging()
    for name in argv[1:]:
        builder = prepare(
            name,
            _FROM.value,
            _DATA_DIR.value,
            partial=_PARTIAL.value,
            processes=_PROCESSES.value,
        )
        _print_splits(builder)
        if _SHORT_SIDE.value is not None:
            _print_splits(resize_dataset(builder, _SHORT_SIDE.value, _QUALITY.value))


def run() -> None:
    """Entry point; `runtime.programs` has the exit statuses."""
    sys.exit(run_program(lambda: app.run(main, with_underscores(sys.argv))))


if __name__ == "__main__":
    run()
