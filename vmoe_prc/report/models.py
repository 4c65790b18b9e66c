"""The trained models behind the runs, opened and named for pictures."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from vmoe_prc.analysis.opened_run import OpenedRun, open_run
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.config import ConfigError
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.runs import Run


def runs_by_seed(experiments: Sequence[Experiment]) -> dict[int, dict[str, Run]]:
    """Gathers what is drawn side by side: the runs of one seed, named by experiment.

    Args:
      experiments: Experiments with the same data set.

    Returns:
      Runs by a name that is short enough for a picture; the seed that most experiments
      have comes first.
    """
    groups = collections.defaultdict(dict)
    for name, experiment in zip(short_names(experiments), experiments, strict=True):
        for seed, run in zip(experiment.seeds, experiment.runs, strict=True):
            groups[seed][name] = run
    return {seed: groups[seed] for seed in sorted(groups, key=lambda s: (-len(groups[s]), s))}


def short_names(experiments: Sequence[Experiment]) -> list[str]:
    """Names experiments by method, and by k and a number as far as needed."""
    methods = [e.method for e in experiments]
    with_k = [e.method if e.k is None else f"{e.method}, k={e.k}" for e in experiments]
    names = methods if len(set(methods)) == len(methods) else with_k
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, counts, strict=True)]


def open_models(runs: Mapping[str, Run]) -> tuple[list[OpenedRun], list[str]]:
    """Opens the checkpoints of runs.

    Args:
      runs: Runs by the names to give them.

    Returns:
      Those with experts that can be opened here, and a warning for each that cannot.
    """
    opened, warnings = [], []
    for name, run in runs.items():
        if not run.config["model"]["encoder"]["moe"]["layers"]:
            continue
        try:
            opened.append(dataclasses.replace(open_run(run.workdir), name=name))
        except (ConfigError, CheckpointError, OSError) as error:
            warnings.append(f"no pictures of {run.workdir}: {_first_line(error)}")
    return opened, warnings


def alike(runs: Iterable[OpenedRun]) -> list[list[OpenedRun]]:
    """Groups models that can take each other's images, patch by patch."""
    groups = collections.defaultdict(list)
    for run in runs:
        shape = run.batch_spec("train")["image"].shape[-3:]
        groups[shape, tuple(run.config.model.patch_size)].append(run)
    return list(groups.values())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
