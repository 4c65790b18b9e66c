"""Which runs are the same experiment, and what sets experiments apart."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmoe_prc.config import flatten
from vmoe_prc.report import published
from vmoe_prc.report.runs import Run

# What a run may differ in without being another experiment.
IGNORED = {
    "seed",
    "description",
    "initialization.prefix",
    "report_progress.every_steps",
    "save_checkpoint.every_steps",
    "save_checkpoint.keep_last",
    "evaluate.every_steps",
    "profile",
}
IGNORED_OF_DATASETS = {"data_dir", "manual_dir", "cache", "prefetch", "prefetch_device"}
METHODS = {None: "V-MoE", "prc": "PRC", "l2": "L2", "jsd": "JSD"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seeds alone.

    Attributes:
      dataset: Name of the data set.
      method: 'V-MoE', 'PRC', ...
      k: Selected experts; None where the experts select.
      settings: What sets it apart from others of the same method, if there are any.
      runs: Its runs, in the order of their seeds.
    """

    dataset: str
    method: str
    k: int | None
    settings: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.config["seed"] for run in self.runs)

    @property
    def label(self) -> str:
        """Tells it apart from other experiments with the same data set."""
        k = "" if self.k is None else f"k={self.k}"
        return ", ".join(filter(None, [self.method, k, self.settings]))


def group_runs(runs: Iterable[Run]) -> tuple[list[Experiment], list[str]]:
    """Gathers the runs of each experiment.

    Args:
      runs: Finished runs, in any order.

    Returns:
      The experiments in the order of the paper's table, and warnings of runs that are left
      out since another one has the same configuration and seed.
    """
    groups, warnings = _group(runs)
    experiments = [
        name_experiment(group, settings)
        for group, settings in zip(groups, _settings(groups), strict=True)
    ]
    return sorted(experiments, key=_order), warnings


def name_experiment(runs: Sequence[Run], settings: str) -> Experiment:
    """Makes an experiment of runs that are known to differ in their seeds alone.

    Args:
      runs: The runs, in the order of their seeds; at least one.
      settings: What sets it apart from other experiments of the same method and k.
    """
    return Experiment(*_name(runs[0]), settings, tuple(runs))


def experiment_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that make an experiment what it is, by dotted names."""
    flat = flatten(config)
    datasets = {name for name in flat if name.startswith("dataset.")}
    dropped = {name for name in datasets if name.rpartition(".")[2] in IGNORED_OF_DATASETS}
    return {name: v for name, v in flat.items() if name not in IGNORED | dropped}


def _group(runs: Iterable[Run]) -> tuple[list[list[Run]], list[str]]:
    groups: dict[str, dict[int, Run]] = collections.defaultdict(dict)
    warnings = []
    for run in runs:
        group = groups[json.dumps(experiment_fields(run.config), sort_keys=True)]
        seed = run.config["seed"]
        if seed in group:
            warnings.append(
                f"left out: {run.workdir}: the same configuration and seed {seed} as "
                f"{group[seed].workdir}"
            )
        else:
            group[seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()], warnings


def _settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Tells groups apart that the first columns do not."""
    alike = collections.defaultdict(list)
    for group in groups:
        alike[_name(group[0])].append(experiment_fields(group[0].config))
    settings = []
    for group in groups:
        experiment, others = experiment_fields(group[0].config), alike[_name(group[0])]
        differing = sorted(
            name
            for name in {name for other in others for name in other}
            if len({json.dumps(other.get(name)) for other in others}) > 1
        )
        settings.append(", ".join(f"{name}={experiment.get(name)}" for name in differing))
    return settings


def _name(run: Run) -> tuple[str, str, int | None]:
    consistency = run.config["consistency"]
    method = METHODS[consistency and consistency["name"]]
    moe = run.config["model"]["encoder"]["moe"]
    k = moe["router"].get("num_selected_experts") if moe["layers"] else None
    return run.config["dataset"]["train"]["name"], method if moe["layers"] else "dense", k


def _order(experiment: Experiment) -> tuple[Any, ...]:
    """The order of the paper's table; other data sets and methods follow."""
    datasets, methods = list(published.ACCURACY), list(METHODS.values())
    known = experiment.dataset in datasets
    return (
        datasets.index(experiment.dataset) if known else len(datasets),
        experiment.dataset,
        experiment.k or 0,
        methods.index(experiment.method) if experiment.method in methods else len(methods),
        experiment.settings,
    )
