"""What stable routing is worth on cluttered Fashion-MNIST, and which method gives it.

    python -m vmoe_prc.study.ensemble --study=configs/ensembles/routing_worth.py \
        --data=/usr/share/datasets/fashion-mnist --stage=gate --stage=tune --stage=main --out=DIR

On a CPU `--at-once=1` is faster: one run after the other, and runs that DIR has are not repeated.

The folder holds the four IDX files of Fashion-MNIST. docs/ROUTING_STUDY.md says what is compared,
and was written before the runs. Scenes for training and validation come from different garments,
scenes of the test from the test garments.
"""

import functools
import json
import pathlib

import numpy as np

from vmoe_prc.data.clutter import fashion_scenes, garments
from vmoe_prc.study.ensemble import members
from vmoe_prc.study.ensemble.training import Task

CANDIDATE_WEIGHTS = (0.01, 0.03, 0.1)
TUNING_STEPS = GATE_STEPS = 2_000
CLUTTER = Task()


@functools.cache
def scenes(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scenes of a split, (N, 40, 40) uint8, and their labels."""
    return fashion_scenes(folder, split)


def plain(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the garments of a split on 32x32 pixels, with a border of zeros."""
    images, labels = garments(folder, split)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels


def gate(folder: pathlib.Path, out: pathlib.Path):
    """Is routing worth anything? Candidates for the study, V-MoE, three seeds."""
    plain_task = functools.partial(Task, side=32, smallest_area=0.7, steps=GATE_STEPS)
    clutter_task = functools.partial(Task, steps=GATE_STEPS)
    two_blocks = {"moe_layers": (1, 3), "split_rngs": False}
    candidates = {
        "plain, 2 of 4 blocks, equal experts": (plain, plain_task(**two_blocks)),
        "plain, 2 of 4 blocks": (plain, plain_task(moe_layers=(1, 3))),
        "plain, all blocks": (plain, plain_task()),
        "clutter, 2 of 4 blocks, equal experts": (scenes, clutter_task(**two_blocks)),
        "clutter, all blocks": (scenes, clutter_task()),
        "clutter, all blocks, k=2": (scenes, clutter_task(k=2)),
    }
    for label, (data, task) in candidates.items():
        yield {
            "label": label,
            "task": task,
            "variants": [members.vmoe_by_batch()],
            "seeds": 3,
            "train": data(folder, "train"),
            "test": data(folder, "validation"),
        }


def tune(folder: pathlib.Path, out: pathlib.Path):
    """Weights of the losses that have no published one, on the validation scenes."""
    methods = (members.place_prc, members.iic_within)
    yield {
        "task": Task(steps=TUNING_STEPS),
        "variants": [method(weight) for method in methods for weight in CANDIDATE_WEIGHTS],
        "seeds": 3,
        "train": scenes(folder, "train"),
        "test": scenes(folder, "validation"),
    }


def chosen_weight(out: pathlib.Path, method) -> float:
    """Returns the weight of the best mean validation accuracy in the stage `tune`."""
    lines = [json.loads(line) for line in (out / "tune.jsonl").read_text().splitlines()]

    def accuracy(weight: float) -> float:
        name = method(weight).name
        return np.mean([line["accuracy"] for line in lines if line["variant"] == name])

    return max(CANDIDATE_WEIGHTS, key=accuracy)


def variants(out: pathlib.Path) -> list[members.Variant]:
    """Returns the variants that are compared, the reference first."""
    return [
        members.vmoe_by_batch(),
        members.prc_balanced(),
        members.prc_random_pairs(),
        members.place_prc(chosen_weight(out, members.place_prc)),
        members.iic_within(chosen_weight(out, members.iic_within)),
    ]


def published(out: pathlib.Path) -> list[members.Variant]:
    """Returns the methods with the balance that their papers have, which are not compared."""
    return [members.prc(), members.vmoe_by_group()]


def main(folder: pathlib.Path, out: pathlib.Path, compared=variants, k: int = 1):
    """The comparison: five variants, 12 seeds, 4,000 steps."""
    yield {
        "task": Task(k=k, steps=4_000),
        "variants": compared(out),
        "seeds": 12,
        "train": scenes(folder, "train"),
        "test": scenes(folder, "test"),
    }


def noise(folder: pathlib.Path, out: pathlib.Path):
    """V-MoE and PRC with and without photometric changes of the views: 5 seeds, 3,000 steps."""
    yield {
        "task": Task(steps=3_000),
        "variants": [
            members.Variant(f"{variant.name}{suffix}", variant.weights, photometric)
            for variant in (members.vmoe_by_batch(), members.prc_balanced())
            for photometric, suffix in ((False, ""), (True, ", photometric views"))
        ],
        "seeds": 5,
        "train": scenes(folder, "train"),
        "test": scenes(folder, "test"),
    }


STAGES = {
    "gate": gate,
    "tune": tune,
    "main": main,
    "published": functools.partial(main, compared=published),
    "main_k2": functools.partial(main, k=2),
    "noise": noise,
}
