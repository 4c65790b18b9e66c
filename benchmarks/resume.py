"""How soon a run reads its first batch from any place, and how much each process reads.

    python -m benchmarks.resume --examples=100000

Small images are prepared as `prepare` does. Then the first batch of training is read, from the
beginning of an epoch, its middle, and 97%: seconds of CPU of all threads, and their ratio to those
at the beginning. The bytes of the records of which one of P processes reads most in an evaluation
are given as a share of all.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from benchmarks import timing
from vmoe_prc.data import pipeline
from vmoe_prc.data.builders import prepare_once
from vmoe_prc.data.order import Order, Rows
from vmoe_prc.data.preprocess import CHUNK
from vmoe_prc.data.split import Split, open_split

PLACES = (0.0, 0.5, 0.97)
PROCESSES = (1, 2, 4, 8, 64)
BATCH_SIZE = 64


class Dots(tfds.core.GeneratorBasedBuilder):
    """Images of 8x8 pixels.

    Args:
      count: Number of examples.
      data_dir: Where they go.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, count: int = 1, data_dir: str | None = None):
        self._count = count
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        for i in range(self._count):
            yield i, {"image": image, "label": i % 10}


def time_first_batch(split: Split, start_step: int) -> float:
    """Returns the seconds of CPU until the first batch of a stream that begins at a step."""
    begin = time.process_time()
    with contextlib.closing(
        pipeline.train_batches(split, seed=0, start_step=start_step)
    ) as batches:
        next(batches)
    return time.process_time() - begin


def share_of_bytes(split: Split, process_count: int) -> float:
    """Returns the largest share of all bytes that one of the processes reads in an evaluation."""
    order = Order(split.num_examples, shuffle=False)
    sizes = np.array(list(map(len, split.records.read(range(split.num_examples)))))
    most = 0
    for process in range(process_count):
        options = {"process_index": process, "process_count": process_count}
        rows = Rows(order, BATCH_SIZE, end=split.num_examples, **options)
        chunks = range(-(-rows.stop // CHUNK))
        numbers = np.concatenate([rows.chunk(i, CHUNK)[1] for i in chunks])
        most = max(most, int(sizes[numbers].sum()))
    return most / int(sizes.sum())


def section(data_dir: str) -> dict[str, object]:
    """Makes a section of `config.dataset` for the small images."""
    return {
        "name": "dots",
        "data_dir": data_dir,
        "manual_dir": None,
        "split": "train",
        "process": 'decode|value_range(-1, 1)|onehot(10)|keep("image", "labels")',
        "batch_size": BATCH_SIZE,
        "shuffle_buffer": 1,
        "shuffle_block": 1,
        "workers": 0,
        "cache": None,
        "max_bad_examples": 0,
        "prefetch": 1,
        "prefetch_device": 1,
    }


def run(args: argparse.Namespace, data_dir: str) -> None:
    """Measures and reports."""
    prepare_once(lambda: Dots(args.examples, data_dir=data_dir))
    split = open_split(ml_collections.ConfigDict(section(data_dir)))
    time_first_batch(split, 0)
    steps = {place: int(place * args.examples) // BATCH_SIZE for place in PLACES}
    seconds: dict[float, list[float]] = {place: [] for place in PLACES}
    for _ in range(args.repetitions):
        for place, step in steps.items():
            seconds[place].append(time_first_batch(split, step))
    first = statistics.median(seconds[0.0])
    rows: list[dict[str, object]] = [
        {
            "measured": f"first batch at {place:.0%}",
            "CPU seconds": statistics.median(times),
            "ratio": statistics.median(times) / first,
        }
        for place, times in seconds.items()
    ]
    rows += [
        {
            "measured": f"bytes read by one of {count} processes",
            "CPU seconds": "",
            "ratio": share_of_bytes(split, count),
        }
        for count in PROCESSES
    ]
    timing.report(args, rows)


def main(argv: list[str] | None = None) -> None:
    """Makes the data set in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--examples", type=int, default=100_000, help="size of the data set")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(argv), str(pathlib.Path(data_dir)))


if __name__ == "__main__":
    main()
