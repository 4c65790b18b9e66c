"""Looks into the routing of trained models: `python -m vmoe_prc.analyze table --workdir=DIR`."""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.programs import add_traceback_argument, run_program, setup

if TYPE_CHECKING:
    from vmoe_prc.analysis.opened_run import OpenedRun


def table(args: argparse.Namespace) -> None:
    """Writes the routing table of a split as Parquet."""
    from vmoe_prc.analysis.routing_table import write_routing_table

    (run,) = _open(args)
    split = run.choose_split(args.split)
    path = _output(args, f"routing_{split}.parquet")
    rows = write_routing_table(run, split, path, blocks=args.block, k=args.k)
    print(f"{path}: {rows:,} rows")


def agreement(args: argparse.Namespace) -> None:
    """Prints how often two views agree on the experts, with intervals over images."""
    from vmoe_prc.analysis.agreement_table import agreement_table

    (run,) = _open(args)
    split = run.choose_split(args.split, two_views=True)
    frame = agreement_table(run, split, args.block)
    path = _output(args, f"agreement_{split}.csv")
    _write_csv(frame, path)
    print(f"Agreement of two views of {split}, % with 95% interval over images")
    print(frame.to_string(index=False, float_format=lambda x: f"{100 * x:.2f}"))
    print(path)


def robustness(args: argparse.Namespace) -> None:
    """Perturbs and attacks the images: what changes of the routing, and of the accuracy."""
    import pandas as pd

    from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
    from vmoe_prc.analysis.robustness import UNITS, robustness_table
    from vmoe_prc.figures.panels import save_figure

    levels = _levels(args.perturbation or DEFAULT_PERTURBATIONS)
    parts = []
    for run in _open(args):
        split = run.choose_split(args.split, two_views=False)
        part = robustness_table(run, split, levels, blocks=args.block)
        parts.append(part.assign(run=run.name))
    frame = pd.concat(parts, ignore_index=True)
    path = _output(args, f"robustness_{split}.csv")
    _write_csv(frame, path)
    save_figure(robustness_figure(frame, UNITS), path.with_suffix(".png"), dpi=110)
    shown = frame[frame["block"] == "all"].drop(columns="block")
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    print(f"{path}\n{path.with_suffix('.png')}")


def specialisation(args: argparse.Namespace) -> None:
    """Says what each expert does: load, classes, how sure its router is, how alike they are."""
    from vmoe_prc.analysis.experts import measure_specialisation
    from vmoe_prc.analysis.figures.expert_panels import specialisation_figure
    from vmoe_prc.figures.panels import save_figure

    (run,) = _open(args)
    split = run.choose_split(args.split)
    found = measure_specialisation(run, split, args.block)
    folder = _output(args, f"specialisation_{split}")
    for name, frame in found._asdict().items():
        _write_csv(frame, folder / f"{name}.csv")
    print(found.blocks.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    print(folder)
    for block in found.blocks["block"]:
        path = folder / f"{block}.png"
        title = f"{run.name}, {split}"
        save_figure(specialisation_figure(found, block, title=title), path, dpi=110)
        print(path)


def pictures(args: argparse.Namespace) -> None:
    """Draws which experts see which patches; two runs side by side on the same images."""
    from vmoe_prc.analysis.figures.pictures import draw_pictures
    from vmoe_prc.figures.panels import save_figure

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
        save_figure(picture.figure, path)
        print(path)


DEFAULT_PERTURBATIONS = ("gaussian_noise", "shift", "rotation", "crop", "jpeg", "fgsm", "pgd")


def _levels(arguments: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Reads `gaussian_noise`, `shift=0,1,2`, and `imagenet_c` for all of its kinds."""
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

    if bool(args.checkpoint) != bool(args.config):
        given, missing = ("checkpoint", "config") if args.checkpoint else ("config", "checkpoint")
        value = getattr(args, given)
        raise ConfigError(f"--{given}", value, f"needs --{missing}: only a run knows its own")
    runs = [open_run(workdir) for workdir in args.workdir]
    for checkpoint in args.checkpoint:
        runs.append(open_checkpoint(read_config_file(args.config, "--config"), checkpoint))
    if not runs:
        raise ConfigError("--workdir", None, "expected the work directory of a run")
    if len(runs) > 1 and not args.several:
        raise ConfigError("--workdir", args.workdir[-1], "only one run at a time, for this command")
    return name_apart(runs, [*args.workdir, *args.checkpoint])


def _output(args: argparse.Namespace, name: str) -> pathlib.Path:
    """Where to write: beside the first run by default, or in `analysis/` of a checkpoint."""
    folder = pathlib.Path(args.workdir[0]) if args.workdir else pathlib.Path()
    return args.output or folder / "analysis" / name


def _write_csv(frame, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vmoe_prc.analyze", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(function: Callable, *, several: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(
            function.__name__, help=function.__doc__, description=function.__doc__
        )
        command.set_defaults(function=function, several=several)
        again = "; repeat it to compare runs" if several else ""
        command.add_argument(
            "--workdir", action="append", default=[], help=f"work directory of a run{again}"
        )
        command.add_argument(
            "--checkpoint",
            action="append",
            default=[],
            help="instead of a run, or beside it: prefix of a released V-MoE checkpoint, or a "
            ".safetensors or .npz file",
        )
        command.add_argument(
            "--config", help="config file of the checkpoints, such as configs/imagenet_prc.py:k=2"
        )
        command.add_argument("--split", help="a name in config.dataset; by default a test split")
        command.add_argument("--block", action="append", help="such as encoderblock_3; repeatable")
        add_traceback_argument(command)
        command.add_argument("--output", type=pathlib.Path, help="by default in WORKDIR/analysis")
        return command

    add(table).add_argument("--k", type=int, help="choices a token; by default all")
    add(agreement)
    add(robustness, several=True).add_argument(
        "--perturbation",
        action="append",
        help="such as shift, shift=0,1,2, fgsm or imagenet_c; repeatable",
    )
    add(specialisation)
    command = add(pictures, several=True)
    command.add_argument("--images", type=int, default=4, help="images to draw, 4 by default")
    command.add_argument(
        "--perturbation", action="append", help="such as shift or shift=0,1,2; repeatable"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    setup()
    return run_program(lambda: args.function(args), args.traceback)


if __name__ == "__main__":
    sys.exit(main())
