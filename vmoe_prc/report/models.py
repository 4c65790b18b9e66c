"""The trained models of runs, opened and named for figures."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from vmoe_prc.analysis.naming import distinct_names
from vmoe_prc.analysis.opened_run import OpenedRun, open_run
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.config import ConfigError
from vmoe_prc.figures.palette import LineStyle, line_styles
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.runs import Run


def runs_by_seed(experiments: Sequence[Experiment]) -> dict[int, dict[str, Run]]:
    """Groups runs that are drawn side by side: the runs of one seed, named by experiment.

    Args:
      experiments: Experiments on the same data set.

    Returns:
      By seed, runs by a name that is short enough for a figure; the seed that most
      experiments have comes first.
    """
    groups = collections.defaultdict(dict)
    for name, experiment in zip(short_names(experiments), experiments, strict=True):
        for seed, run in zip(experiment.seeds, experiment.runs, strict=True):
            if not run.diverged:
                groups[seed][name] = run
    return {seed: groups[seed] for seed in sorted(groups, key=lambda s: (-len(groups[s]), s))}


def short_names(experiments: Sequence[Experiment]) -> list[str]:
    """Names experiments by method, and by k and a number where needed."""
    return distinct_names(
        [(e.method, e.method if e.k is None else f"{e.method}, k={e.k}") for e in experiments]
    )


def named_styles(experiments: Sequence[Experiment]) -> dict[str, LineStyle]:
    """Returns the line style of each experiment by its short name, as in learning curves."""
    return dict(zip(short_names(experiments), line_styles(len(experiments)), strict=True))


def open_models(runs: Mapping[str, Run]) -> tuple[list[OpenedRun], list[str]]:
    """Opens the checkpoints of runs.

    Args:
      runs: Runs by the names to give them.

    Returns:
      The models with experts that can be opened here, and a warning for each other one.
    """
    opened, warnings = [], []
    for name, run in runs.items():
        if not run.config["model"]["encoder"]["moe"]["layers"]:
            continue
        try:
            opened.append(dataclasses.replace(open_run(run.workdir), name=name))
        except (ConfigError, CheckpointError, OSError) as error:
            reason = str(error).partition("\n")[0]
            warnings.append(f"no figures of {run.workdir}: {reason}")
    return opened, warnings


def group_by_input(runs: Iterable[OpenedRun]) -> list[list[OpenedRun]]:
    """Groups models that take images of the same size in patches of the same size."""
    groups = collections.defaultdict(list)
    for run in runs:
        shape = run.batch_spec("train")["image"].shape[-3:]
        groups[shape, tuple(run.config.model.patch_size)].append(run)
    return list(groups.values())
