"""Starts anywhere in an epoch of a large data set, and bytes that each process reads.

    python -m benchmarks.random_access --records=1000000

Writes that many tiny images as ArrayRecord files into a temporary directory. Then it times the
first batch of training at 0 and at 97% of an epoch, by turns, and counts the bytes that one of 1,
2, 4, 8 and 64 processes reads for the same steps: those of its records, and all that the system
counts (`rchar` of /proc/self/io, on Linux), which also has the indices of the files.
"""

import argparse
import io
import pathlib
import tempfile

import ml_collections
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from benchmarks import timing
from vmoe_prc.data import pipeline
from vmoe_prc.data.order import Order, Rows
from vmoe_prc.data.split import Split, open_split

NAME, SPLIT = "tiny_records", "train"
FILES = 16
# Different images; more would take longer to make and be read no differently.
DIFFERENT = 1000
PROCESSES = (1, 2, 4, 8, 64)
BASELINE = "0% of an epoch"


def write(directory: pathlib.Path, count: int) -> None:
    """Writes a data set of TFDS with `count` records."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    serializer = ExampleSerializer(features.get_serialized_info())
    rng = np.random.default_rng(0)
    records = []
    for i in range(DIFFERENT):
        file = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(file, "png")
        example = features.encode_example({"image": file.getvalue(), "label": i % 10})
        records.append(serializer.serialize_example(example))
    bounds = [i * count // FILES for i in range(FILES + 1)]
    lengths = np.diff(bounds).tolist()
    target = directory / NAME / "1.0.0"
    target.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        dataset_name=NAME, split=SPLIT, data_dir=target, filetype_suffix="array_record"
    )
    for i, length in enumerate(lengths):
        path = template.sharded_filepath(shard_index=i, num_shards=FILES)
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for j in range(length):
            writer.write(records[(bounds[i] + j) % DIFFERENT])
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=features,
        check_data=False,
        split_infos=[
            tfds.core.SplitInfo(
                name=SPLIT,
                shard_lengths=lengths,
                num_bytes=sum(map(len, records)) * count // DIFFERENT,
                filename_template=template,
            )
        ],
    )


def opened(directory: pathlib.Path, batch_size: int) -> Split:
    """Opens the data set anew: nothing of its files is open or known."""
    section = {
        "name": NAME,
        "data_dir": str(directory),
        "manual_dir": None,
        "split": SPLIT,
        "process": 'decode|value_range(-1, 1)|onehot(10)|keep("image", "labels")',
        "batch_size": batch_size,
        "shuffle_buffer": 1,
        "shuffle_block": 1,
        "workers": 0,
        "cache": None,
        "max_bad_examples": 0,
        "prefetch": 1,
    }
    return open_split(ml_collections.ConfigDict(section))


def first_batch(split: Split, part: float) -> None:
    """Makes the first batch of a run that resumes after a part of the first epoch."""
    step = int(part * split.num_examples) // split.config.batch_size
    batches = pipeline.train_batches(split, seed=0, start_step=step)
    next(batches)
    batches.close()


def bytes_read(split: Split, processes: int, steps: int) -> tuple[int, int]:
    """Returns bytes of the records, and all bytes, that the last process reads for some steps."""
    batch_size = split.config.batch_size
    rows = Rows(
        Order(split.num_examples),
        batch_size,
        process_index=processes - 1,
        process_count=processes,
        end=steps * batch_size,
    )
    before, records = _all_bytes(), 0
    for step in range(steps):
        _, numbers = rows.chunk(step, rows.rows_per_step)
        records += sum(map(len, split.records.read(numbers.tolist())))
    return records, _all_bytes() - before


def _all_bytes() -> int:
    path = pathlib.Path("/proc/self/io")
    return int(path.read_text().split()[1]) if path.exists() else 0


def run(args: argparse.Namespace, directory: pathlib.Path) -> None:
    """Measures both."""
    write(directory, args.records)
    starts = {
        BASELINE: lambda: first_batch(opened(directory, args.batch_size), 0),
        "97% of an epoch": lambda: first_batch(opened(directory, args.batch_size), 0.97),
    }
    times = timing.compare(timing.take_turns(starts, args.repetitions), BASELINE)
    first = [{"start": name, **row} for name, row in times.items()]
    read = []
    for processes in PROCESSES:
        records, everything = bytes_read(opened(directory, args.batch_size), processes, args.steps)
        read.append({"processes": processes, "bytes of records": records, "bytes": everything})
    for row in read:
        row["records, ratio"] = row["bytes of records"] / read[0]["bytes of records"]
        row["1 / processes"] = 1 / row["processes"]
    timing.report(args, first, read=read)
    print(timing.format_table(read))


def main(argv: list[str] | None = None) -> None:
    """Makes the data set in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=64, help="steps whose bytes are counted")
    with tempfile.TemporaryDirectory() as directory:
        run(parser.parse_args(argv), pathlib.Path(directory))


if __name__ == "__main__":
    main()
