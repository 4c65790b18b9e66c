"""Trains many small runs at once on one device and compares them.

    python -m vmoe_prc.study.ensemble --study=configs/studies/routing_worth.py --stage=main

The study file has `get_stages(data)`, see `configs/studies/routing_worth.py`. Each stage writes
one line of JSON per member to DIR/STAGE.jsonl.
"""

import json
import pathlib
import runpy
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.study.ensemble.members import Variant
from vmoe_prc.study.ensemble.probes import evaluate
from vmoe_prc.study.ensemble.training import Task, make_training, stack_members


def run_stage(
    task: Task,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    chunk: int = 100,
    log=lambda line: print(line, flush=True),
) -> list[dict[str, float | str | int]]:
    """Trains every variant with every seed and evaluates them.

    Args:
      task: What all runs share; its steps are a multiple of `chunk`.
      variants: Losses of the runs.
      seeds: Seeds of each variant.
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
    members = stack_members(variants, seeds)
    create, advance = make_training(task, *train, chunk=chunk)
    state, metrics, start = create(members), {}, time.perf_counter()
    for step in range(0, task.steps, chunk):
        state, metrics = advance(members, state, step)
        if (step // chunk) % 10 == 0:
            loss = np.asarray(metrics["loss"])
            seconds = time.perf_counter() - start
            log(f"step {step + chunk}: loss {loss.min():.3f} to {loss.max():.3f}, {seconds:.0f} s")
    results = evaluate(task, state.ema_params, *test)
    log(f"{len(results)} runs of {task.steps} steps: {time.perf_counter() - start:.0f} s")
    names = [(variant.name, seed) for variant in variants for seed in seeds]
    last = {name: np.asarray(value) for name, value in metrics.items()}
    return [
        {"variant": name, "seed": seed, "steps": task.steps, "k": task.k}
        | result
        | {f"train_{metric}": float(values[i]) for metric, values in last.items()}
        for i, ((name, seed), result) in enumerate(zip(names, results, strict=True))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages that are asked for; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m vmoe_prc.study.ensemble", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--study", required=True, type=pathlib.Path, help="Python file")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of IDX files")
    parser.add_argument("--stage", action="append", required=True, help="name; may be repeated")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the results")
    parser.add_argument("--steps", type=int, help="other number of steps, for a trial")
    parser.add_argument("--seeds", type=int, help="other number of seeds, for a trial")
    parser.add_argument("--chunk", type=int, default=100, help="steps of a compiled call")
    args = parser.parse_args(argv)
    study = runpy.run_path(str(args.study))
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
    for name in args.stage:
        if name not in study["STAGES"]:
            print(f"error: --stage = {name!r}: expected one of {', '.join(study['STAGES'])}")
            return 2
        path = args.out / f"{name}.jsonl"
        changes = {"steps": args.steps, "seeds": args.seeds}
        for part in study["STAGES"][name](args.data, args.out):
            part |= {k: v for k, v in changes.items() if v is not None}
            steps, label = part.pop("steps", None), part.pop("label", None)
            if steps:
                part["task"] = part["task"].__class__(**vars(part["task"]) | {"steps": steps})
            if isinstance(part["seeds"], int):
                part["seeds"] = range(part["seeds"])
            for result in run_stage(**part, chunk=args.chunk):
                line = {"stage": name, **({"label": label} if label else {}), **result}
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
