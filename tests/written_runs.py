"""Work directories of runs that were never trained: all that a report reads but checkpoints."""

import json

from configs import digits_prc


def write_run(directory, config, accuracy, top1=0.5, finished=True, metrics=()):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), default=list))
    records = [
        {"step": 1, "time": 0, "test/accuracy": 0.1, "test_pairs/top1": 0.1},
        {"step": 2, "time": 0, "test/accuracy": accuracy, "test_pairs/top1": top1} | dict(metrics),
        {"step": 3, "time": 0, "train/accuracy": 1.0},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if finished:
        (directory / "summary.txt").write_text("done")


def write_arm(directory, arguments, accuracies, recipe=digits_prc):
    for seed, accuracy in enumerate(accuracies):
        config = recipe.get_config(f"{arguments},seed={seed}")
        write_run(directory / f"{arguments}-{seed}", config, accuracy)
