"""Plan of a study: its arms and seeds, each with a checked configuration."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from vmoe_prc.config import (
    ConfigError,
    complete,
    complete_section,
    nearest,
    override,
    plain,
)
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.options import option
from vmoe_prc.report.config_diff import MISSING, differing_fields
from vmoe_prc.report.experiments import experiment_fields
from vmoe_prc.workdir.history import read_data
from vmoe_prc.workdir.layout import CONFIG_FILE, SUMMARY_FILE
from vmoe_prc.workdir.paths import user_path

LOG_FILE = "log.txt"
# The error of the last attempt at the run.
FAILURE_FILE = "failure.txt"
ROBUSTNESS_FILE = "robustness.csv"

section = dataclasses.dataclass(frozen=True, kw_only=True)


@section
class ArmOptions:
    """One variant that a study trains."""

    name: str = option(help="Name of the arm.")
    title: str = option("", "Label that tells arms of the same method and k apart in tables.")
    arguments: str = option("", "Arguments of the config file, as in `--config=FILE:ARGUMENTS`.")
    overrides: Mapping[str, Any] = option(dict, "Fields of the configuration that differ.")


@section
class RobustnessOptions:
    """Robustness of every run of a study."""

    split: str = option("test", "Split that is perturbed.")
    examples: str | None = option(
        None, "Examples to use, such as `test[:1000]`; None for all of the split."
    )
    perturbations: Mapping[str, Any] = option(help="Levels by kind of perturbation.")


@section
class StudyOptions:
    """A study: arms, each trained with several seeds."""

    config: str = option(help="Config file of the arms.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds that every arm is trained with.", minimum=0)
    overrides: Mapping[str, Any] = option(
        dict, "Fields that differ in all arms; the arm's own come after."
    )
    arms: tuple[Mapping[str, Any], ...] = option(help="The arms.")
    comparisons: tuple[Any, ...] = option(
        (), "Pairs (arm, arm); the second one is subtracted from the first."
    )
    split: str = option("test", "Split of the accuracy; agreement is measured on `{split}_pairs`.")
    robustness: RobustnessOptions | None = option(None, "Robustness of the runs; None for none.")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
      arm: Name of its arm.
      seed: Its seed.
      workdir: Its work directory.
      config: Its completed configuration.
    """

    arm: str
    seed: int
    workdir: epath.Path
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """Such as `prc_k2/seed=0`."""
        return f"{self.arm}/seed={self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, checked.

    Attributes:
      source: Its file, with arguments, such as `configs/studies/digits.py:seeds=5`.
      workdir: Its directory.
      options: Contents of the file, with defaults.
      runs: Its runs in order: all arms of the first seed, then of the second.
    """

    source: str
    workdir: epath.Path
    options: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]

    def state(self, run: PlannedRun) -> str:
        """Returns the state of a run: 'done', 'failed', 'begun' or 'new'."""
        trained = (run.workdir / SUMMARY_FILE).exists()
        if trained and (not self.options["robustness"] or robustness_path(run).exists()):
            return "done"
        if (run.workdir / FAILURE_FILE).exists():
            return "failed"
        return "begun" if (run.workdir / CONFIG_FILE).exists() else "new"


def robustness_path(run: PlannedRun) -> epath.Path:
    """Returns the path of the robustness table of a run."""
    return run.workdir / ROBUSTNESS_FILE


def read_study(source: str, workdir: str | os.PathLike[str] | None = None) -> Study:
    """Reads and checks a study with all configurations of its runs.

    Args:
      source: A Python file with get_config(arguments), and arguments after a colon. A relative
        path in its field `config` is looked up in the folder of this file, then in the current
        directory.
      workdir: Directory of the study, local or `gs://`; by default `workdir/` and the name of the
        file.

    Raises:
      ConfigError: If the file cannot be read, anything in it or in a configuration is
        wrong, or the directory holds a run with another configuration.
    """
    path = pathlib.Path(source.partition(":")[0]).expanduser()
    workdir = user_path(workdir or pathlib.Path("workdir") / path.stem)
    options = complete_section(plain(read_config_file(source, "--study")), StudyOptions, "study")
    arms = [
        complete_section(arm, ArmOptions, f"study.arms[{i}]")
        for i, arm in enumerate(options["arms"])
    ]
    options = {**options, "arms": {arm["name"]: arm for arm in arms}}
    _check(options, len(arms))
    options["config"] = _beside(path, options["config"])
    configs = {name: _arm_config(options, name) for name in options["arms"]}
    _check_different(configs)
    runs = tuple(
        PlannedRun(
            name,
            seed,
            workdir / "runs" / name / f"seed={seed}",
            complete({**config.to_dict(), "seed": seed}),
        )
        for seed in options["seeds"]
        for name, config in configs.items()
    )
    for run in runs:
        _check_held(run)
    return Study(source, workdir, options, runs)


def _check(options: Mapping[str, Any], num_arms: int) -> None:
    arms, seeds = options["arms"], options["seeds"]
    if not arms:
        raise ConfigError("study.arms", (), "expected at least one arm")
    if len(arms) < num_arms:
        raise ConfigError("study.arms", tuple(arms), "two arms have the same name")
    for name in arms:
        if not re.fullmatch(r"[\w=-]+", name):
            raise ConfigError("study.arms", name, "a name has letters, digits, '_', '-' and '='")
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int for s in seeds):
        raise ConfigError("study.seeds", seeds, "expected different ints, at least one")
    for i, pair in enumerate(options["comparisons"]):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(f"study.comparisons[{i}]", pair, "expected (arm, arm)")
        for name in pair:
            if name not in arms:
                allowed = f"no such arm; allowed: {', '.join(arms)}"
                raise ConfigError(f"study.comparisons[{i}]", name, allowed, nearest(name, arms))


def _beside(study: pathlib.Path, config: str) -> str:
    """Returns the path of a config file in the folder of the study, if there is such a file."""
    path = study.parent / pathlib.Path(config).expanduser()
    return str(path) if path.is_file() else config


def _check_different(configs: Mapping[str, ml_collections.ConfigDict]) -> None:
    plain_configs = {name: config.to_dict() for name, config in configs.items()}
    for (a, config), (b, other) in itertools.combinations(plain_configs.items(), 2):
        if config == other:
            raise ConfigError("study.arms", (a, b), "these arms have the same configuration")


def _arm_config(options: Mapping[str, Any], name: str) -> ml_collections.ConfigDict:
    """Completes the configuration of an arm; what is wrong with it names the arm."""
    arm = options["arms"][name]
    try:
        config = read_config_file(f"{options['config']}:{arm['arguments']}", "study.config")
        for changes in (options["overrides"], arm["overrides"]):
            config = override(config, changes)
        config = complete(config)
    except ConfigError as error:
        field = f"arm {name}: {error.field}"
        named = ConfigError(field, error.value, error.expected, error.suggestion)
        raise named from error.__cause__  # a bug of the user's file keeps its traceback
    robustness = options["robustness"] or {}
    for field, split in (
        ("study.split", options["split"]),
        ("study.robustness.split", robustness.get("split", options["split"])),
    ):
        if split not in config.dataset:
            allowed = f"not in config.dataset of {name}; allowed: {', '.join(config.dataset)}"
            raise ConfigError(field, split, allowed, nearest(split, config.dataset))
    return config


def _check_held(run: PlannedRun) -> None:
    """Compares a run with the configuration that its work directory has already."""
    try:
        earlier = json.loads((run.workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return
    now = json.loads(json.dumps(run.config.to_dict(), default=list))
    # A run that has the digests of its data compares them itself when it is resumed.
    data = read_data(run.workdir)
    earlier, now = experiment_fields(earlier, data), experiment_fields(now, data)
    for field, (before, after) in differing_fields([earlier, now]).items():
        sections = itertools.accumulate(field.split("."), lambda a, b: f"{a}.{b}")
        was_off = any(earlier.get(name, MISSING) is None for name in sections)
        # Other fields without an earlier value are new in the program.
        if before is not MISSING or was_off:
            shown = None if before is MISSING else before
            expected = (
                f"{run.workdir} was begun with {shown!r}; remove it, or choose another --workdir"
            )
            raise ConfigError(f"config.{field}", None if after is MISSING else after, expected)
