"""Trains many small runs at once on one device and compares them.

    python -m vmoe_prc.study.ensemble --study=configs/ensembles/routing_worth.py --stage=main

The study file has `STAGES`, see `configs/ensembles/routing_worth.py`. Each stage writes one line of
JSON per run to DIR/STAGE.jsonl; runs that the file has are not repeated.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.arguments import ArgumentParser, at_least
from vmoe_prc.runtime.programs import add_traceback_argument, run_program
from vmoe_prc.study.ensemble.members import Variant, used_terms
from vmoe_prc.study.ensemble.probes import evaluate
from vmoe_prc.study.ensemble.training import Task, make_training, stack_members


def run_members(
    task: Task,
    runs: Sequence[tuple[Variant, int]],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    chunk: int = 100,
    log=lambda line: print(line, flush=True),
) -> list[dict[str, float | str | int]]:
    """Trains runs together and evaluates them.

    Args:
      task: The part that all runs share; its steps are a multiple of `chunk`.
      runs: Variants with their seeds.
      train: Training images (N, side, side) uint8 and labels.
      test: Images and labels of the evaluation.
      chunk: Steps between two lines of the log.
      log: Takes lines about the progress.

    Returns:
      By run: `variant`, `seed`, `steps`, the metrics of `probes.evaluate`, and the mean
      `train_loss` and `train_accuracy` of the last steps.

    Raises:
      ValueError: If `chunk` does not divide the steps.
    """
    if task.steps % chunk:
        raise ValueError(f"steps = {task.steps} must be a multiple of {chunk}")
    terms = used_terms([variant for variant, _ in runs])
    members = stack_members(runs, terms)
    create, advance = make_training(task, *train, chunk=chunk, terms=terms)
    state, metrics, start = create(members), {}, time.perf_counter()
    for step in range(0, task.steps, chunk):
        state, metrics = advance(members, state, step)
        if (step // chunk) % 10 == 0:
            loss = np.asarray(metrics["loss"])
            seconds = time.perf_counter() - start
            log(f"step {step + chunk}: loss {loss.min():.3f} to {loss.max():.3f}, {seconds:.0f} s")
    results = evaluate(task, state.ema_params, *test)
    log(f"{len(results)} runs of {task.steps} steps: {time.perf_counter() - start:.0f} s")
    last = {name: np.asarray(value) for name, value in metrics.items()}
    return [
        {"variant": variant.name, "seed": seed, "steps": task.steps, "k": task.k}
        | result
        | {f"train_{metric}": float(values[i]) for metric, values in last.items()}
        for i, ((variant, seed), result) in enumerate(zip(runs, results, strict=True))
    ]


def run_stage(
    path: pathlib.Path,
    task: Task,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    at_once: int | None = None,
    part: tuple[int, int] = (1, 1),
    **options: Any,
) -> None:
    """Adds the runs of a stage that a file does not have to it, after each group of runs.

    Args:
      path: File of JSON lines.
      task: The part that all runs share. One run at a time computes the selected experts only.
      variants: Losses of the runs.
      seeds: Seeds of each variant.
      train: Training images and labels.
      test: Images and labels of the evaluation.
      at_once: Runs that are trained together; None for all that are missing. Seeds come one after
        the other, so that a stage that is stopped has whole seeds.
      part: (i, n), from 1: every n-th run from the i-th on. Processes with different parts add
        their lines to one file.
      **options: Further arguments of `run_members`, and `label` of the task.

    Raises:
      ConfigError: If the file has runs of another number of steps or experts, such as a trial's.
    """
    label = options.pop("label", None)
    named = {"stage": path.stem, **({"label": label} if label else {})}
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    earlier = [line for line in lines if line.get("label") == label]
    for line in earlier:
        if (line["steps"], line["k"]) != (task.steps, task.k):
            found = f"has runs of {line['steps']} steps with k = {line['k']}"
            expected = f"{found}, not of {task.steps} with k = {task.k}; choose another folder"
            raise ConfigError("--out", str(path), expected)
    done = {(line["variant"], line["seed"]) for line in earlier}
    index, parts = part
    runs = [(v, s) for s in seeds for v in variants][index - 1 :: parts]
    runs = [(v, s) for v, s in runs if (v.name, s) not in done]
    if at_once == 1:
        task = dataclasses.replace(task, dispatcher="dropless")
    size = at_once or max(len(runs), 1)
    for start in range(0, len(runs), size):
        for result in run_members(task, runs[start : start + size], train, test, **options):
            with path.open("a") as file:
                file.write(json.dumps({**named, **result}) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages that are asked for; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m vmoe_prc.study.ensemble", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--study", required=True, type=pathlib.Path, help="Python file")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of IDX files")
    parser.add_argument("--stage", action="append", required=True, help="name; may be repeated")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the results")
    parser.add_argument("--steps", type=at_least(1), help="other number of steps, for a trial")
    parser.add_argument("--seeds", type=at_least(1), help="other number of seeds, for a trial")
    parser.add_argument("--at-once", type=at_least(1), help="runs trained together; default: all")
    parser.add_argument(
        "--chunk", type=at_least(1), default=100, help="steps of a compiled call, 100 by default"
    )
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="carry out only the runs of part I of N, from 1: one part for each process or device",
    )
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    return run_program(lambda: _run_stages(args), args.traceback)


def _run_stages(args: argparse.Namespace) -> None:
    stages = runpy.run_path(str(args.study))["STAGES"]
    for name in args.stage:
        if name not in stages:
            raise ConfigError("--stage", name, f"expected one of {', '.join(stages)}")
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
    for name in args.stage:
        for comparison in stages[name](args.data, args.out):
            seeds = range(comparison.pop("seeds") if args.seeds is None else args.seeds)
            task = comparison.pop("task")
            if args.steps is not None:
                task = dataclasses.replace(task, steps=args.steps)
            run_stage(
                args.out / f"{name}.jsonl",
                task,
                seeds=seeds,
                at_once=args.at_once,
                chunk=args.chunk,
                part=args.part,
                **comparison,
            )


def _part(text: str) -> tuple[int, int]:
    index, slash, parts = text.partition("/")
    if not (slash and index.isdecimal() and parts.isdecimal() and 1 <= int(index) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with I from 1 to N, such as 1/4")
    return int(index), int(parts)


if __name__ == "__main__":
    sys.exit(main())
