"""Results of a study so far: tables, differences, curves."""

import csv
from collections.abc import Mapping, Sequence

from vmoe_prc.report.experiments import Experiment, name_experiment
from vmoe_prc.report.formats import differences_to_csv, to_csv, to_markdown
from vmoe_prc.report.paired import DifferenceTable, compare, difference_table
from vmoe_prc.report.runs import read_run
from vmoe_prc.report.tables import make_tables, metrics_of
from vmoe_prc.study.plan import PlannedRun, Study, robustness_path
from vmoe_prc.workdir.atomic import atomic_write

Experiments = Mapping[str, Experiment]  # by the name of the arm


def write_results(study: Study) -> str:
    """Writes what the runs that are done show into the directory of the study.

    The files are `tables.md`, `tables.csv`, `differences.csv` and their picture
    `differences.png`, `runs.csv` with the figures of each run and, where it is measured,
    `robustness.csv` and `robustness.png`.

    Returns:
      The tables as Markdown; empty if no run is done.
    """
    done = [run for run in study.runs if study.state(run) == "done"]
    if not done:
        return ""
    experiments = _experiments(study, done)
    tables = make_tables(experiments.values(), study.options["split"])
    differences = _differences(study, experiments)
    shown = to_markdown([*tables, *([differences] if differences.rows else [])])
    texts = {
        "tables.md": f"{_heading(study, len(done))}\n\n{shown}\n",
        "tables.csv": to_csv(tables) + "\n",
        "differences.csv": differences_to_csv(differences) + "\n",
    }
    for name, text in texts.items():
        with atomic_write(study.workdir / name) as path:
            path.write_text(text)
    _write_runs(study, experiments)
    if differences.rows:
        _draw_differences(study, differences)
    if study.options["robustness"]:
        _write_robustness(study, done, experiments)
    return shown


def _experiments(study: Study, done: Sequence[PlannedRun]) -> Experiments:
    experiments = {}
    for name, arm in study.options["arms"].items():
        runs = [read_run(run.workdir) for run in done if run.arm == name]
        if runs:
            experiments[name] = name_experiment(runs, arm["title"])
    return experiments


def _differences(study: Study, experiments: Experiments) -> DifferenceTable:
    return difference_table(
        [
            compare(experiments[a], experiments[b], study.options["split"])
            for a, b in study.options["comparisons"]
            if a in experiments and b in experiments
        ]
    )


def _heading(study: Study, num_done: int) -> str:
    command = f"python -m vmoe_prc.study --study={study.source} --workdir={study.workdir}"
    return f"`{command}`: {num_done} of {len(study.runs)} runs."


def _write_runs(study: Study, experiments: Experiments) -> None:
    rows = [
        (name, run.config["seed"], metrics_of(run, study.options["split"]))
        for name, experiment in experiments.items()
        for run in experiment.runs
    ]
    columns = list(dict.fromkeys(column for _, _, metrics in rows for column in metrics))
    with atomic_write(study.workdir / "runs.csv") as path, path.open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", *columns])
        for name, seed, metrics in rows:
            writer.writerow([name, seed, *(metrics.get(column, "") for column in columns)])


def _draw_differences(study: Study, differences: DifferenceTable) -> None:
    # Imported here: listing a study needs no Matplotlib.
    from vmoe_prc.figures.panels import save_figure
    from vmoe_prc.report.figures import differences_figure

    save_figure(differences_figure(differences), study.workdir / "differences.png", dpi=110)


def _write_robustness(study: Study, done: Sequence[PlannedRun], experiments: Experiments) -> None:
    import pandas as pd

    from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
    from vmoe_prc.analysis.robustness import UNITS
    from vmoe_prc.figures.panels import save_figure

    parts = []
    for run in done:
        with robustness_path(run).open() as file:
            rows = pd.read_csv(file)
        parts.append(rows.assign(run=experiments[run.arm].label, seed=run.seed))
    table = pd.concat(parts, ignore_index=True)
    with atomic_write(study.workdir / "robustness.csv") as path, path.open("w") as file:
        table.to_csv(file, index=False)
    save_figure(robustness_figure(table, UNITS), study.workdir / "robustness.png", dpi=110)
