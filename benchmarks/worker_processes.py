"""Worker processes: rate, the part of the parent, ends of epochs, memory, a killed worker.

    python -m benchmarks.worker_processes --workers=0,1,2 --output=workdir/worker_processes.json

Rates: photographs as in `benchmarks.input_pipeline`, crops and flips, against TensorFlow decoding
the same JPEGs in the same run. "CPU µs/image" is of all processes together. "parent" is the CPU
time of the process that trains, all its threads together, per image: it holds the interpreter's
lock for no longer than that. No model consumes the batches.

Epochs: tiny images, resized to 224x224, so that batches have the size of a training's and several
epochs take seconds. A pause of `--pace` times the mean time of a batch at full rate stands for a
training step: without it batches of several workers come in bursts, and the median wait is near
zero. "longest batch at an end" is the longest time of a step and of the wait for its batch, which
spans the end of an epoch or follows it, over the median of all steps; "median at an end" is the
median of those; "longest elsewhere" shows what the machine itself does. "memory" is what the parent
alone has at the end of each epoch, "with shared" its whole resident memory: batches of workers are
shared. Then the CPU time to make a batch at an end in one thread, the longest over the median of
all batches: other programs hardly change it.
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

import jax
import ml_collections
import psutil

from benchmarks import input_pipeline, resume, timing
from vmoe_prc.data import feed, pipeline
from vmoe_prc.data.order import Order, Rows
from vmoe_prc.data.split import Split, open_split
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.mesh import create_mesh

WARM_UP = 8
# Batches whose time gives the pauses of the steps.
PACE_BATCHES = 64
# Epochs whose batches are made in one thread.
CPU_EPOCHS = 3
# Side of the images in pixels, as of a training.
SIZE = 224
PAGE = os.sysconf("SC_PAGE_SIZE")
STAGE = "crops, flips"


def children_cpu() -> float:
    """Returns the CPU seconds that the living child processes have used."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(x.user + x.system for x in times)


def resident() -> tuple[float, float]:
    """Returns the resident memory of this process in MB, without memory that it shares and with."""
    _, all_pages, shared, *_ = pathlib.Path("/proc/self/statm").read_text().split()
    return (int(all_pages) - int(shared)) * PAGE / 1e6, int(all_pages) * PAGE / 1e6


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


def steps_of(split: Split, count: int) -> int:
    """Returns the number of steps of some epochs."""
    return math.ceil(count * split.num_examples / split.config.batch_size)


def steps_at_ends(split: Split, count: int) -> set[int]:
    """Returns the steps whose batch spans the end of an epoch but the last, or follows it."""
    ends = {e * split.num_examples // split.config.batch_size for e in range(1, count)}
    return ends | {end + 1 for end in ends}


def epochs(split: Split, count: int, pace: float) -> dict[str, object]:
    """Reads some epochs batch by batch, with pauses for the steps of a training."""
    steps = steps_of(split, count)
    ends = steps_at_ends(split, count)
    pause = pace * rate(split, PACE_BATCHES)["wall"] / PACE_BATCHES
    times, memory = [], []
    rows = pipeline.train_batches(split, seed=0)
    with contextlib.closing(feed.on_devices(split, rows, create_mesh())) as made:
        for _ in range(WARM_UP):
            next(made)
        for step in range(WARM_UP, steps):
            begin = time.perf_counter()
            jax.block_until_ready(next(made))
            time.sleep(pause)
            times.append((step, time.perf_counter() - begin))
            if (step + 1) * split.config.batch_size % split.num_examples < split.config.batch_size:
                memory.append(resident())
    median = statistics.median(wait for _, wait in times)
    at_ends = [wait for step, wait in times if step in ends]
    elsewhere = max(wait for step, wait in times if step not in ends)
    return {
        "workers": split.config.workers,
        "batches": len(times),
        "median batch, ms": 1e3 * median,
        "batches at ends": len(at_ends),
        "longest batch at an end": max(at_ends) / median,
        "median at an end": statistics.median(at_ends) / median,
        "longest elsewhere": elsewhere / median,
        "memory, MB": ", ".join(f"{own:.0f}" for own, _ in memory),
        "with shared, MB": ", ".join(f"{everything:.0f}" for _, everything in memory),
    }


def cpu_at_ends(split: Split, count: int) -> float:
    """Makes batches in this thread; returns the longest CPU time at an end over the median."""
    order = Order(split.num_examples, seed=0)
    rows = Rows(order, split.config.batch_size)
    preprocess, records = split.preprocess(seed=0), split.records
    used = []
    for step in range(steps_of(split, count)):
        begin = time.thread_time()
        positions, numbers = rows.chunk(step, rows.rows_per_step)
        preprocess.rows(positions.tolist(), records.read(numbers.tolist()))
        used.append(time.thread_time() - begin)
    return max(used[step] for step in steps_at_ends(split, count)) / statistics.median(used)


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
    splits = [resume.open_records(data_dir, workers, size=SIZE) for workers in args.workers]
    ends = []
    for split in splits:
        ends.append(epochs(split, args.epochs, args.pace))
        print(ends[-1], flush=True)
    print(f"\n{args.epochs} epochs of {args.examples:,} images")
    timing.report(args, ends, rates=rows)
    print(f"CPU at an end: {cpu_at_ends(splits[0], CPU_EPOCHS):.2f}")
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
    parser.add_argument("--examples", type=int, default=20_000, help="images of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are read")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(argv), data_dir)


if __name__ == "__main__":
    main()
