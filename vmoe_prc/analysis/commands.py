"""The commands of `vmoe_prc.analyze`: each measures, writes files, and prints a table.

With several processes all of them measure, and process 0 writes and prints.
Libraries are imported inside of the commands, so that `--help` need not wait for them.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmoe_prc.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from vmoe_prc.analysis.opened_run import OpenedRun

DEFAULT_PERTURBATIONS = ("gaussian_noise", "shift", "rotation", "crop", "jpeg", "fgsm", "pgd")


def table(args: argparse.Namespace) -> None:
    """Writes the routing table of a split as Parquet."""
    from vmoe_prc.analysis.routing_table import write_routing_table

    (run,) = _open(args)
    split = run.choose_split(args.split)
    path = _output(args, f"routing_{split}.parquet")
    rows = write_routing_table(run, split, path, blocks=args.block, k=args.k)
    _say(f"{path}: {rows:,} rows")


def agreement(args: argparse.Namespace) -> None:
    """Measures how often two views agree on the experts: by chance, by image, by place."""
    from vmoe_prc.analysis.agreement_table import agreement_bars, agreement_table
    from vmoe_prc.figures.agreement_bars import agreement_figure

    (run,) = _open(args)
    split = run.choose_split(args.split, two_views=True)
    frame = agreement_table(run, split, args.block)
    path = _output(args, f"agreement_{split}.csv")
    _write_csv(frame, path)
    title = f"{run.name}, {split}: agreement of two views"
    figure = agreement_figure(agreement_bars(frame), title=title)
    _save_figure(figure, path.with_suffix(".png"), dpi=110)
    _say(f"Agreement of two views of {split}, % with 95% interval over images")
    _print(frame, percent=True)
    _say(f"{path}\n{path.with_suffix('.png')}")


def robustness(args: argparse.Namespace) -> None:
    """Perturbs and attacks the images: changes of routing and accuracy."""
    import pandas as pd

    from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
    from vmoe_prc.analysis.robustness import UNITS, robustness_table

    levels = _levels(args.perturbation or DEFAULT_PERTURBATIONS)
    parts = []
    for run in _open(args):
        split = run.choose_split(args.split, two_views=False)
        part = robustness_table(run, split, levels, blocks=args.block)
        parts.append(part.assign(run=run.name))
    frame = pd.concat(parts, ignore_index=True)
    path = _output(args, f"robustness_{split}.csv")
    _write_csv(frame, path)
    _save_figure(robustness_figure(frame, UNITS), path.with_suffix(".png"), dpi=110)
    _print(frame[frame["block"] == "all"].drop(columns="block"))
    _say(f"{path}\n{path.with_suffix('.png')}")


def specialisation(args: argparse.Namespace) -> None:
    """Measures the experts: load, classes, entropy of the gates, similarity."""
    from vmoe_prc.analysis.experts import measure_specialisation
    from vmoe_prc.analysis.figures.expert_panels import specialisation_figure

    (run,) = _open(args)
    split = run.choose_split(args.split)
    found = measure_specialisation(run, split, args.block)
    folder = _output(args, f"specialisation_{split}")
    for name, frame in found._asdict().items():
        _write_csv(frame, folder / f"{name}.csv")
    _print(found.blocks)
    _say(folder)
    names = run.split(split).class_names
    for block in found.blocks["block"]:
        path = folder / f"{block}.png"
        title = f"{run.name}, {split}"
        figure = specialisation_figure(found, block, title=title, class_names=names)
        _save_figure(figure, path, dpi=110)
        _say(path)


def pictures(args: argparse.Namespace) -> None:
    """Draws the experts of patches; several runs side by side on the same images."""
    from vmoe_prc.analysis.figures.pictures import draw_pictures

    folder = _output(args, "pictures")
    sequences = _levels(args.perturbation) if args.perturbation else None
    drawn = draw_pictures(
        _open(args),
        split=args.split,
        blocks=args.block,
        sequences=sequences,
        num_images=args.images,
    )
    for picture in drawn:
        path = folder / (re.sub(r"[^-.=\w]+", "-", picture.name).strip("-") + ".png")
        _save_figure(picture.figure, path)
        _say(path)


def swap(args: argparse.Namespace) -> None:
    """Exchanges the routing: accuracy with random experts, with experts of the other view, ..."""
    from vmoe_prc.analysis.figures.measures import swap_figure
    from vmoe_prc.analysis.swap import swap_test

    (run,) = _open(args)
    found = swap_test(run, args.split, noise=args.noise, seed=args.seed)
    folder = _output(args, "swap")
    for name, frame in found._asdict().items():
        _write_csv(frame, folder / f"{name}.csv")
    path = folder / "swap.png"
    _save_figure(swap_figure(found, title=run.name), path, dpi=110)
    table = found.routings
    _print(table.drop(columns=[name for name in table if str(name).endswith(("_low", "_high"))]))
    _say(
        "\nrouted_flops: share of operations (%). Others: differences of accuracy (points), with "
        "95% interval over images"
    )
    _print(found.gains, percent=True)
    _say(f"{folder}\n{path}")


def ramp(args: argparse.Namespace) -> None:
    """Follows images under growing noise: jumps and drops by position in the routing group."""
    from vmoe_prc.analysis.figures.measures import ramp_figure
    from vmoe_prc.analysis.ramp import ramp_test

    (run,) = _open(args)
    found = ramp_test(
        run,
        args.split,
        num_images=args.images,
        levels=args.levels,
        sigma=args.noise,
        seed=args.seed,
    )
    folder = _output(args, "ramp")
    for name, frame in found._asdict().items():
        _write_csv(frame, folder / f"{name}.csv")
    path = folder / "ramp.png"
    _save_figure(ramp_figure(found, title=run.name), path, dpi=110)
    _print(
        found.positions.pivot(index="capacity", columns="position", values="dropped"), index=True
    )
    _print(found.capacities)
    _say(f"{folder}\n{path}")


def capacity(args: argparse.Namespace) -> None:
    """Measures accuracy against the capacity of the experts, with and without batch priority."""
    from vmoe_prc.analysis.capacity import drop_curve
    from vmoe_prc.analysis.figures.measures import capacity_figure

    (run,) = _open(args)
    frame = drop_curve(run, args.split)
    _write_with_figure(args, "capacity", frame, capacity_figure(frame, title=run.name))


def information(args: argparse.Namespace) -> None:
    """Measures what first experts tell of the class, the position, the content of a patch."""
    from vmoe_prc.analysis.figures.measures import information_figure
    from vmoe_prc.analysis.information import information_table

    (run,) = _open(args)
    frame = information_table(run, args.split, args.block)
    _write_with_figure(args, "information", frame, information_figure(frame, title=run.name))


def margins(args: argparse.Namespace) -> None:
    """Measures the margins of routers, and the jumps of the output where experts switch."""
    from vmoe_prc.analysis.margins import margin_table

    (run,) = _open(args)
    _write_with_figure(args, "margins", margin_table(run, args.split, args.block))


def stability(args: argparse.Namespace) -> None:
    """Compares the first choices of several runs or checkpoints on the same images."""
    from vmoe_prc.analysis.stability import stability_table

    _write_with_figure(args, "stability", stability_table(_open(args), args.split))


def _write_with_figure(
    args: argparse.Namespace, name: str, frame: "pd.DataFrame", figure: Any = None
) -> None:
    path = _output(args, f"{name}.csv")
    _write_csv(frame, path)
    _print(frame)
    _say(path)
    if figure is not None:
        _save_figure(figure, path.with_suffix(".png"), dpi=110)
        _say(path.with_suffix(".png"))


def _levels(arguments: Sequence[str]) -> Mapping[str, tuple[float, ...]]:
    """Parses `gaussian_noise`, `shift=0,1,2`, and `imagenet_c` for all of its kinds."""
    from vmoe_prc.analysis.robustness import KINDS, default_levels

    levels = {}
    for argument in arguments:
        kind, _, values = argument.partition("=")
        for name in [k for k in KINDS if k.startswith(f"{kind}/")] or [kind]:
            levels[name] = default_levels(name)
            if values:
                try:
                    levels[name] = tuple(float(value) for value in values.split(","))
                except ValueError:
                    expected = "expected numbers such as shift=0,1,2"
                    raise ConfigError("--perturbation", argument, expected) from None
    return levels


def _open(args: argparse.Namespace) -> "list[OpenedRun]":
    """Opens the runs and checkpoints, in this order."""
    from vmoe_prc.analysis.opened_run import name_apart, open_checkpoint, open_run
    from vmoe_prc.config.files import read_config_file
    from vmoe_prc.runtime.processes import connect_devices, process_zero_first, raise_everywhere

    if bool(args.checkpoint) != bool(args.config):
        given, missing = ("checkpoint", "config") if args.checkpoint else ("config", "checkpoint")
        expected = f"needs --{missing}: a checkpoint has no configuration"
        raise ConfigError(f"--{given}", getattr(args, given), expected)
    steps = getattr(args, "step", None) or [None]
    with raise_everywhere():
        runs = [open_run(workdir, step) for workdir in args.workdir for step in steps]
        if args.checkpoint:
            with process_zero_first():  # It may have to prepare the data.
                config = read_config_file(args.config, "--config", prepare=True)
            runs += [open_checkpoint(config, checkpoint) for checkpoint in args.checkpoint]
    for run in runs:
        connect_devices(run.mesh)
    if not runs:
        raise ConfigError("--workdir", None, "expected the work directory of a run")
    if len(runs) > 1 and not args.several:
        raise ConfigError("--workdir", args.workdir[-1], "only one run at a time, for this command")
    places = [workdir for workdir in args.workdir for _ in steps]
    return name_apart(runs, [*places, *args.checkpoint])


def _output(args: argparse.Namespace, name: str) -> pathlib.Path:
    """Returns the output: by default in `analysis/` of the first run, or here for a checkpoint."""
    folder = pathlib.Path(args.workdir[0]).expanduser() if args.workdir else pathlib.Path()
    return args.output or folder / "analysis" / name


def _write_csv(frame: "pd.DataFrame", path: pathlib.Path) -> None:
    if not _speaks():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def _print(frame: "pd.DataFrame", *, percent: bool = False, index: bool = False) -> None:
    def number(x: float) -> str:
        return f"{100 * x:.2f}" if percent else f"{x:.4f}"

    _say(frame.to_string(index=index, float_format=number))


def _save_figure(figure: Any, path: pathlib.Path, **options: Any) -> None:
    from vmoe_prc.figures.panels import save_figure

    if _speaks():
        save_figure(figure, path, **options)


def _say(text: object) -> None:
    if _speaks():
        print(text)


def _speaks() -> bool:
    from vmoe_prc.runtime.processes import is_main_process

    return is_main_process()
