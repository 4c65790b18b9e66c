"""Worker processes: rate, the part of the parent, ends of epochs, memory, a killed worker.

    python -m benchmarks.worker_processes --workers=0,1,2 --output=workdir/worker_processes.json

Rates: photographs as in `benchmarks.input_pipeline`, crops and flips, against TensorFlow decoding
the same JPEGs in the same run. "CPU µs/image" is of all processes together. "parent" is the CPU
time of the process that trains, all its threads together, per image: it holds the interpreter's
lock for no longer than that. No model consumes the batches.

Epochs: small images, so that several epochs take seconds. A pause of `--pace` times the mean time
of a batch at full rate stands for a training step: without it batches of several workers come in
bursts, and the median wait is near zero. "longest batch at an end" is the longest time of a step
and of the wait for its batch, which spans the end of an epoch or follows it, over the median of
all steps; "longest elsewhere" shows what the machine itself does. "CPU at an end" is the CPU time
to make such a batch in one thread, the longest over the median of all batches: other programs
hardly change it. "RSS" is the memory of the parent at the end of each epoch.
"""

import argparse
import contextlib
import math
import os
import pathlib
import re
import statistics
import tempfile
import time
from typing import Any

import ml_collections
import psutil

from benchmarks import input_pipeline, resume, timing
from vmoe_prc.data import pipeline
from vmoe_prc.data.order import Order, Rows
from vmoe_prc.data.split import Split, open_split
from vmoe_prc.errors import RunError

WARM_UP = 8
EPOCHS = 3
# Batches whose time gives the pauses of the steps.
PACE_BATCHES = 64
PAGE = os.sysconf("SC_PAGE_SIZE")
STAGE = "crops, flips"


def children_cpu() -> float:
    """Returns the CPU seconds that the living child processes have used."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(x.user + x.system for x in times)


def resident() -> float:
    """Returns the resident memory of this process in MB, without memory that it shares."""
    _, all_pages, shared, *_ = pathlib.Path("/proc/self/statm").read_text().split()
    return (int(all_pages) - int(shared)) * PAGE / 1e6


def rate(split: Split, num_batches: int) -> dict[str, float]:
    """Times batches in full swing: seconds of wall time, and CPU of parent and workers."""
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        for _ in range(WARM_UP):
            next(made)
        wall, cpu, others = time.perf_counter(), time.process_time(), children_cpu()
        for _ in range(num_batches):
            next(made)
        return {
            "wall": time.perf_counter() - wall,
            "parent": time.process_time() - cpu,
            "workers": children_cpu() - others,
        }


def decoding(split: Split, num_batches: int) -> dict[str, float]:
    """Times TensorFlow decoding the same images and no more."""
    made = input_pipeline.decoded(split)
    for _ in range(WARM_UP):
        next(made)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(made)
    seconds = time.process_time() - cpu
    return {"wall": time.perf_counter() - wall, "parent": seconds, "workers": 0.0}


def rates(args: argparse.Namespace, data_dir: str) -> list[dict[str, object]]:
    """Measures the rate for each number of workers, by turns."""
    input_pipeline.Photographs(data_dir=data_dir).download_and_prepare()
    splits = {workers: open_photographs(args, data_dir, workers) for workers in args.workers}
    found: dict[Any, list[dict[str, float]]] = {name: [] for name in ("decoding", *splits)}
    for _ in range(args.repetitions):
        found["decoding"].append(decoding(next(iter(splits.values())), args.batches))
        for workers, split in splits.items():
            found[workers].append(rate(split, args.batches))
    count = args.batches * args.batch_size

    def least(name: object, *parts: str) -> float:
        return min(sum(one[part] for part in parts) for one in found[name])

    base_wall, base_cpu = least("decoding", "wall"), least("decoding", "parent")
    return [
        {
            "workers": name,
            "images/s": count / least(name, "wall"),
            "% of decoding": 100 * base_wall / least(name, "wall"),
            "CPU µs/image": 1e6 * least(name, "parent", "workers") / count,
            "% of decoding, CPU": 100 * base_cpu / least(name, "parent", "workers"),
            "parent, CPU µs/image": 1e6 * least(name, "parent") / count,
        }
        for name in found
    ]


def open_photographs(args: argparse.Namespace, data_dir: str, workers: int) -> Split:
    """Opens the photographs for a number of workers."""
    section = {
        **input_pipeline.section(data_dir, args.batch_size),
        "process": input_pipeline.STAGES[STAGE],
        "workers": workers,
    }
    return open_split(ml_collections.ConfigDict(section))


def steps_at_ends(split: Split) -> set[int]:
    """Returns the steps whose batch spans the end of an epoch, or follows it."""
    ends = {e * split.num_examples // split.config.batch_size for e in range(1, EPOCHS)}
    return ends | {end + 1 for end in ends}


def epochs(split: Split, pace: float) -> dict[str, object]:
    """Reads some epochs batch by batch, with pauses for the steps of a training."""
    steps = math.ceil(EPOCHS * split.num_examples / split.config.batch_size)
    ends = steps_at_ends(split)
    pause = pace * rate(split, PACE_BATCHES)["wall"] / PACE_BATCHES
    times, memory = [], []
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        for _ in range(WARM_UP):
            next(made)
        for step in range(WARM_UP, steps):
            begin = time.perf_counter()
            next(made)
            time.sleep(pause)
            times.append((step, time.perf_counter() - begin))
            if (step + 1) * split.config.batch_size % split.num_examples < split.config.batch_size:
                memory.append(resident())
    median = statistics.median(wait for _, wait in times)
    at_ends = max(wait for step, wait in times if step in ends)
    elsewhere = max(wait for step, wait in times if step not in ends)
    return {
        "workers": split.config.workers,
        "batches": len(times),
        "median batch, ms": 1e3 * median,
        "longest batch at an end": at_ends / median,
        "longest elsewhere": elsewhere / median,
        "CPU at an end": cpu_at_ends(split, steps),
        "RSS, MB": ", ".join(f"{value:.1f}" for value in memory),
    }


def cpu_at_ends(split: Split, steps: int) -> float:
    """Makes the same batches in this thread: CPU of the longest at an end, over the median."""
    order = Order(split.num_examples, seed=0)
    rows = Rows(order, split.config.batch_size)
    preprocess, records = split.preprocess(seed=0), split.records
    used = []
    for step in range(steps):
        begin = time.thread_time()
        positions, numbers = rows.chunk(step, rows.rows_per_step)
        preprocess.rows(positions.tolist(), records.read(numbers.tolist()))
        used.append(time.thread_time() - begin)
    return max(used[step] for step in steps_at_ends(split)) / statistics.median(used)


def killed(split: Split) -> str:
    """Kills a worker; returns what the pipeline says.

    Raises:
      AssertionError: If it names no process, or another one.
    """
    with contextlib.closing(pipeline.train_batches(split, seed=0)) as made:
        next(made)
        [worker, *_] = [x for x in psutil.Process().children() if "answer_jobs" in x.cmdline()[-1]]
        worker.kill()
        begin = time.perf_counter()
        try:
            for _ in range(1000):
                next(made)
        except RunError as error:
            assert re.search(rf"\b{worker.pid}\b", str(error)), error
            return f"{error}\n(after {time.perf_counter() - begin:.2f} s)"
    raise AssertionError("the pipeline went on without its worker")


def run(args: argparse.Namespace, data_dir: str) -> None:
    """Measures all, prints three tables and the error."""
    rows = rates(args, data_dir)
    print(timing.format_table(rows))
    resume.write(data_dir, args.examples)
    splits = [resume.open_records(data_dir, workers) for workers in args.workers]
    ends = [epochs(split, args.pace) for split in splits]
    print(f"\n{EPOCHS} epochs of {args.examples:,} small images")
    timing.report(args, ends, rates=rows)
    if splits[-1].config.workers:
        print(f"\nA worker is killed:\n{killed(splits[-1])}")


def main(argv: list[str] | None = None) -> None:
    """Makes the images in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument(
        "--workers", type=timing.integers, default=[0, 1, 2], help="numbers of workers"
    )
    parser.add_argument("--batches", type=int, default=16, help="batches of a repetition")
    parser.add_argument("--batch-size", type=int, default=64, help="source images of a batch")
    parser.add_argument(
        "--pace", type=float, default=1.25, help="a step, in times of a batch at full rate"
    )
    parser.add_argument("--examples", type=int, default=20_000, help="small images of an epoch")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(argv), data_dir)


if __name__ == "__main__":
    main()
