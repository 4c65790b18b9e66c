"""How soon a run reads its first batch from any place, and how much each process reads.

    python -m benchmarks.resume --examples=1000000

Writes that many tiny images as ArrayRecord files into a temporary directory. Then it times the
first batch of training from the beginning of an epoch, its middle, and 97%, by turns; nothing of
the files is open or known before. For one of P processes it gives the share of the bytes of
records of which one of them reads most in an evaluation, and all bytes that the system counts
(`rchar` of /proc/self/io, on Linux) for the last of them in the same steps of training: those
also have the indices of the files.
"""

import argparse
import contextlib
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
from vmoe_prc.data.preprocess import CHUNK
from vmoe_prc.data.split import Split, open_split

PLACES = (0.0, 0.5, 0.97)
PROCESSES = (1, 2, 4, 8, 64)
NAME, SPLIT = "tiny_records", "train"
FILES = 16
# Different images; more would take longer to make and be read no differently.
DIFFERENT = 1000
BATCH_SIZE = 64


def write(data_dir: str, count: int) -> None:
    """Writes a data set of TFDS with `count` records."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    serializer = ExampleSerializer(features.get_serialized_info())
    rng = np.random.default_rng(0)
    records = []
    for i in range(DIFFERENT):
        file = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "png")
        example = features.encode_example({"image": file.getvalue(), "label": i % 10})
        records.append(serializer.serialize_example(example))
    bounds = [i * count // FILES for i in range(FILES + 1)]
    lengths = np.diff(bounds).tolist()
    target = pathlib.Path(data_dir, NAME, "1.0.0")
    target.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        dataset_name=NAME, split=SPLIT, data_dir=target, filetype_suffix="array_record"
    )
    for i, length in enumerate(lengths):
        path = template.sharded_filepath(shard_index=i, num_shards=FILES)
        with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
            for j in range(length):
                writer.write(records[(bounds[i] + j) % DIFFERENT])
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


def open_records(data_dir: str, workers: int = 0, size: int | None = None) -> Split:
    """Opens the data set anew, with images of a side of `size` pixels; None leaves them tiny."""
    resize = f"|resize({size})" if size else ""
    section = {
        "name": NAME,
        "data_dir": data_dir,
        "manual_dir": None,
        "split": SPLIT,
        "process": f'decode{resize}|value_range(-1, 1)|onehot(10)|keep("image", "labels")',
        "batch_size": BATCH_SIZE,
        "shuffle_buffer": 1,
        "shuffle_block": 1,
        "workers": workers,
        "cache": None,
        "max_bad_examples": 0,
        "prefetch": 1,
        "prefetch_device": 1,
    }
    return open_split(ml_collections.ConfigDict(section))


def first_batch(data_dir: str, place: float) -> None:
    """Makes the first batch of a run that resumes after a part of the first epoch."""
    split = open_records(data_dir)
    step = int(place * split.num_examples) // BATCH_SIZE
    with contextlib.closing(pipeline.train_batches(split, seed=0, start_step=step)) as batches:
        next(batches)


def share_of_bytes(sizes: np.ndarray, process_count: int) -> float:
    """Returns the largest share of all bytes that one of the processes reads in an evaluation."""
    order = Order(len(sizes), shuffle=False)
    most = 0
    for process in range(process_count):
        options = {"process_index": process, "process_count": process_count}
        rows = Rows(order, BATCH_SIZE, end=len(sizes), **options)
        chunks = range(-(-rows.stop // CHUNK))
        numbers = np.concatenate([rows.chunk(i, CHUNK)[1] for i in chunks])
        most = max(most, int(sizes[numbers].sum()))
    return most / int(sizes.sum())


def counted_bytes(data_dir: str, process_count: int, steps: int) -> int:
    """Returns what the system counts while the last process reads its rows of some steps."""
    split = open_records(data_dir)
    options = {"process_index": process_count - 1, "process_count": process_count}
    rows = Rows(Order(split.num_examples), BATCH_SIZE, end=steps * BATCH_SIZE, **options)
    before = _rchar()
    for step in range(steps):
        split.records.read(rows.chunk(step, rows.rows_per_step)[1].tolist())
    return _rchar() - before


def _rchar() -> int:
    path = pathlib.Path("/proc/self/io")
    return int(path.read_text().split()[1]) if path.exists() else 0


def run(args: argparse.Namespace, data_dir: str) -> None:
    """Measures and reports."""
    write(data_dir, args.examples)
    starts = {f"{x:.0%} of an epoch": lambda x=x: first_batch(data_dir, x) for x in PLACES}
    times = timing.compare(timing.take_turns(starts, args.repetitions), next(iter(starts)))
    split = open_records(data_dir)
    sizes = np.array([len(x) for x in split.records.read(range(split.num_examples))])
    reads = [
        {
            "processes": count,
            "share of records, evaluation": share_of_bytes(sizes, count),
            f"bytes counted, {args.steps} steps": counted_bytes(data_dir, count, args.steps),
        }
        for count in PROCESSES
    ]
    timing.report(args, [{"first batch": name, **row} for name, row in times.items()], reads=reads)
    print(timing.format_table(reads))


def main(argv: list[str] | None = None) -> None:
    """Makes the data set in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--examples", type=int, default=100_000, help="size of the data set")
    parser.add_argument("--steps", type=int, default=1024, help="steps whose bytes are counted")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(argv), data_dir)


if __name__ == "__main__":
    main()
