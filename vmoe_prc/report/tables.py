"""The tables of the paper: accuracy, agreement of the routers, and use of the experts."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from vmoe_prc.config.metric_names import MetricName, parse_names
from vmoe_prc.report import published
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.runs import Run

ACCURACY = "top-1 accuracy"
AGREEMENT = {
    "top-1": "top1",
    "top-2": "top2",
    "top-2 unordered": "top2_unordered",
}
# Agreement of first choices corrected for chance and for pairing within images: routers that use
# few experts, or send whole images to one, agree easily. See `evaluation.decomposition`.
KAPPAS = {"kappa": "kappa", "kappa place": "kappa_place"}
IN_USE = "experts in use"
COLUMNS = (ACCURACY, *AGREEMENT, *KAPPAS, IN_USE)
PUBLISHED = "published"
# Number of test images, and the standard error of the accuracy that follows from it.
IMAGES, SAMPLING_ERROR = "images", "sampling error"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A quantity over seeds, in % except for numbers of images.

    Attributes:
      mean: Its mean.
      std: Sample standard deviation (n - 1); None for one run, or if it was not published.
    """

    mean: float
    std: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The estimates of an experiment.

    Attributes:
      experiment: The experiment.
      estimates: Estimates by column; a column that the runs lack is missing.
    """

    experiment: Experiment
    estimates: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of estimates.

    Attributes:
      title: Its title.
      columns: Titles of the columns of estimates.
      rows: The rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def make_tables(experiments: Iterable[Experiment], split: str = "test") -> list[Table]:
    """Makes the tables for which the experiments have metrics.

    Args:
      experiments: The experiments.
      split: The split of accuracy and load; agreement is from `{split}_pairs`.
    """
    rows = [_row(experiment, split) for experiment in experiments]
    tables = [
        _table("Top-1 accuracy (%)", [ACCURACY, SAMPLING_ERROR, IMAGES], rows),
        _table("Agreement of the experts of matched patches (%)", [*AGREEMENT, *KAPPAS], rows),
        _table("Experts in use: perplexity of their load (% of all)", [IN_USE], rows),
    ]
    return [table for table in tables if table.rows]


def metrics_of(run: Run, split: str = "test") -> dict[str, float]:
    """Returns the metrics of one run by column, in %; none if the run diverged."""
    if run.diverged:
        return {}
    metrics = parse_names(run.metrics)
    names = {ACCURACY: MetricName("accuracy", split)} | {
        column: MetricName(measure, f"{split}_pairs")
        for column, measure in (AGREEMENT | KAPPAS).items()
    }
    found = {column: 100 * metrics[name] for column, name in names.items() if name in metrics}
    loads = _loads(metrics, split)
    if loads:
        found[IN_USE] = 100 * statistics.mean(map(_share_in_use, loads))
    return found


def num_images(runs: Iterable[Run], split: str = "test") -> int | None:
    """Returns the smallest number of images that a run was evaluated on, if runs logged it."""
    name = str(MetricName("images", split))
    counts = [run.metrics[name] for run in runs if name in run.metrics]
    return int(min(counts)) if counts else None


def sampling_error(percent: float, count: int) -> float:
    """Standard error, in points of %, of a share that was counted on `count` images.

    It is the error from drawing these test images and not others; more seeds do not reduce
    it. sqrt(p (1 - p) / n), with p of (hits + 2) / (n + 4) (Agresti and Coull, 1998), so that
    it is not 0 where all or no images were right.
    """
    share = (percent / 100 * count + 2) / (count + 4)
    return 100 * math.sqrt(share * (1 - share) / (count + 4))


def _loads(metrics: Mapping[MetricName, float], split: str) -> list[list[float]]:
    """Lists the load of the experts of each MoE block."""
    loads = defaultdict(list)
    for name, load in metrics.items():
        if name.group == split and name.measure == "load" and name.expert is not None:
            loads[name.block].append(load)
    return list(loads.values())


def _share_in_use(load: Sequence[float]) -> float:
    """Number of equally used experts with the entropy of this load, as a share of all."""
    entropy = -sum(share * math.log(share) for share in load if share > 0)
    return math.exp(entropy) / len(load)


def _row(experiment: Experiment, split: str) -> Row:
    estimates = {}
    converged = [run for run in experiment.runs if not run.diverged]
    found = [metrics_of(run, split) for run in converged]
    for column in COLUMNS:
        values = [metrics[column] for metrics in found if column in metrics]
        if values and len(values) == len(found):
            std = statistics.stdev(values) if len(values) > 1 else None
            estimates[column] = Estimate(statistics.mean(values), std)
    count = num_images(converged, split)
    if count and ACCURACY in estimates:
        error = sampling_error(estimates[ACCURACY].mean, count)
        estimates |= {SAMPLING_ERROR: Estimate(error, None), IMAGES: Estimate(count, None)}
    for column, values in _published(experiment).items():
        estimates[f"{column}, {PUBLISHED}"] = Estimate(*values)
    return Row(experiment, estimates)


def _published(experiment: Experiment) -> dict[str, tuple[float, float | None]]:
    dataset, variant = experiment.dataset, (experiment.method, experiment.k)
    accuracy = published.ACCURACIES.get(dataset, {}).get(variant)
    agreement = published.AGREEMENTS.get(dataset, {}).get(variant, {})
    found = {ACCURACY: accuracy} if accuracy else {}
    for column, metric in AGREEMENT.items():
        if metric in agreement:
            found[column] = agreement[metric]
    return found


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Keeps rows that have a measured estimate, and columns that have any estimate."""
    kept = tuple(
        row
        for row in rows
        if any(column in row.estimates for column in columns)
        or all(run.diverged for run in row.experiment.runs)
    )
    shown = tuple(
        name
        for column in columns
        for name in (column, f"{column}, {PUBLISHED}")
        if any(name in row.estimates for row in kept)
    )
    return Table(title, shown, kept)
