"""Groups runs into experiments, and names the fields in which experiments differ."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmoe_prc.config import flatten
from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.report import published
from vmoe_prc.report.changes import Change, changes_text, config_changes
from vmoe_prc.report.config_diff import MISSING, differing_fields, value_text
from vmoe_prc.report.runs import Run

# Fields in which runs of one experiment may differ.
IGNORED = {
    "seed",
    "description",
    "note",
    "initialization.prefix",
    "report_progress.every_steps",
    "save_checkpoint.every_steps",
    "save_checkpoint.keep_last",
    "evaluate.every_steps",
    "profile",
}
# The same, in each section of `dataset`.
IGNORED_OF_DATASETS = {"data_dir", "cache", "prefetch", "prefetch_device"}
# The method without a consistency loss.
BASELINE = "V-MoE"


def method_label(loss: str | None) -> str:
    """Returns what tables call the method of a consistency loss, None for no such loss.

    A loss that is not registered, as one of a file that no configuration imports here, goes by
    its name.
    """
    if loss is None:
        return BASELINE
    known = loss in CONSISTENCY_LOSSES
    return (CONSISTENCY_LOSSES.options(loss).label if known else "") or loss


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their seeds.

    Attributes:
      dataset: Name of the data set.
      method: 'V-MoE', 'PRC', ...
      k: Selected experts; None where the experts select.
      settings: Its differences from other experiments of the same method and k.
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
        """Distinguishes it from other experiments on the same data set."""
        k = "" if self.k is None else f"k={self.k}"
        return ", ".join(filter(None, [self.method, k, self.settings]))


def group_runs(runs: Iterable[Run]) -> tuple[list[Experiment], list[str]]:
    """Groups runs by experiment.

    Args:
      runs: Finished runs, in any order.

    Returns:
      The experiments in the order of the paper's table, and a warning for each run that is
      left out because another run has the same configuration, data and seed, for each run
      that diverged, and for each whose configuration was changed as it was resumed.
    """
    groups, warnings = _group(runs)
    experiments = [
        name_experiment(group, settings)
        for group, settings in zip(groups, _settings(groups), strict=True)
    ]
    return sorted(experiments, key=_order), warnings


def name_experiment(runs: Sequence[Run], settings: str) -> Experiment:
    """Makes an experiment of runs that differ only in their seeds.

    Args:
      runs: The runs, in the order of their seeds; at least one.
      settings: See `Experiment`.
    """
    return Experiment(*_name(runs[0]), settings, tuple(runs))


def experiment_fields(
    config: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Returns the fields that define an experiment, by dotted names.

    Data are part of what an experiment is: the digest of each split, as `data.SPLIT`, or where
    it is unknown the directory of own images, `dataset.SPLIT.manual_dir`.

    Args:
      config: The configuration.
      data: Descriptions of the splits by name, see `Run.data`.
    """
    flat, digests = flatten(config), _digests(data or {})
    ignored = _ignored(flat, data or {})
    fields = {name: value for name, value in flat.items() if name not in ignored}
    return fields | {f"data.{name}": digest for name, digest in digests.items()}


def _ignored(flat: Iterable[str], data: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Returns the names of fields in which runs of one experiment may differ."""
    digests = _digests(data)
    return IGNORED | {
        name
        for name in flat
        if (parts := name.split("."))[0] == "loggers"
        or (
            parts[0] == "dataset"
            and (
                parts[-1] in IGNORED_OF_DATASETS
                or (parts[-1] == "manual_dir" and parts[1] in digests)
            )
        )
    }


def _digests(data: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: split["digest"] for name, split in data.items() if "digest" in split}


def _fields(run: Run) -> dict[str, Any]:
    # A run that was resumed with other values is another experiment than one without a change.
    changed = {f"{c.field} until step {c.after_step}": c.before for c in _changes(run)}
    return experiment_fields(run.config, run.data) | {
        name: None if value is MISSING else value for name, value in changed.items()
    }


def _changes(run: Run) -> list[Change]:
    ignored = {name for s in run.history for name in _ignored(flatten(s.config), run.data)}
    return config_changes(run.history, frozenset(ignored - {"seed"}))


def _group(runs: Iterable[Run]) -> tuple[list[list[Run]], list[str]]:
    groups: dict[str, dict[int, Run]] = collections.defaultdict(dict)
    warnings = []
    for run in runs:
        group = groups[json.dumps(_fields(run), sort_keys=True)]
        seed = run.config["seed"]
        if seed in group:
            warnings.append(
                f"left out: {run.workdir}: the same configuration, data and seed {seed} as "
                f"{group[seed].workdir}"
            )
            continue
        group[seed] = run
        if run.diverged:
            warnings.append(
                f"{run.workdir}: diverged: its loss is not finite; it counts in no mean"
            )
        if changes := _changes(run):
            warnings.append(f"{run.workdir}: {changes_text(changes)}")
    return [[group[seed] for seed in sorted(group)] for group in groups.values()], warnings


def _settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Returns the differing fields of groups with the same data set, method and k."""
    fields = [_fields(group[0]) for group in groups]
    names = [_name(group[0]) for group in groups]
    settings = [""] * len(groups)
    for name in set(names):
        members = [i for i, other in enumerate(names) if other == name]
        differing = differing_fields([fields[i] for i in members])
        for column, i in enumerate(members):
            settings[i] = ", ".join(
                f"{field}={value_text(values[column], 'None')}"
                for field, values in differing.items()
            )
    return settings


def _name(run: Run) -> tuple[str, str, int | None]:
    consistency, moe = run.config["consistency"], run.config["model"]["encoder"]["moe"]
    loss = consistency and consistency["name"]
    method = method_label(loss) if moe["layers"] else "dense"
    k = moe.get("router", {}).get("num_selected_experts") if moe["layers"] else None
    return run.config["dataset"]["train"]["name"], method, k


def _order(experiment: Experiment) -> tuple[Any, ...]:
    """Sorts as the paper's table does; other data sets and methods follow."""
    datasets = list(published.ACCURACIES)
    methods = list(
        dict.fromkeys(method for of in published.ACCURACIES.values() for method, _ in of)
    )
    known = experiment.dataset in datasets
    return (
        datasets.index(experiment.dataset) if known else len(datasets),
        experiment.dataset,
        experiment.k or 0,
        methods.index(experiment.method) if experiment.method in methods else len(methods),
        experiment.method,
        experiment.settings,
    )
