"""The parts of the page that look into the models: pictures, robustness, specialisation."""

import functools
from collections.abc import Collection, Iterator, Sequence

import pandas as pd

from vmoe_prc.analysis.experts import measure_specialisation
from vmoe_prc.analysis.figures.pictures import draw_pictures
from vmoe_prc.analysis.figures.robustness import robustness_figure
from vmoe_prc.analysis.figures.specialisation import specialisation_figure
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.robustness import UNITS, default_levels, robustness_table
from vmoe_prc.config import ConfigError
from vmoe_prc.data import source
from vmoe_prc.report.embedding import Picture, drawing, photograph
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.models import alike, open_models, runs_by_seed
from vmoe_prc.report.page import Section

NUM_IMAGES = 3
# What is measured for a page, and the most images it takes for that.
KINDS = ("gaussian_noise", "shift")
MOST_IMAGES = 2000
_ROBUSTNESS = (
    "Robustness",
    "How many tokens go to other experts, how many images are still classified, and how far "
    "the logits move, as the images are perturbed.",
)
_SPECIALISATION = (
    "Specialisation",
    "What the experts of the last block with experts do: their share of the tokens, the classes "
    "of the images these are from, how sure the router is, and how alike the experts are.",
)
# By the beginning of the names that `draw_pictures` gives: title, and how to read them.
_KINDS = {
    "comparison": (
        "Two views, side by side",
        "The same images for all. The colour of a patch is its first expert. A cross marks a "
        "patch whose match in the other view goes to another one: the fewer there are, the more "
        "the router agrees with itself.",
    ),
    "views": (
        "Matched patches",
        "Two views of an image; lines join the patches that show the same place.",
    ),
    "map": ("Routing maps", "Which experts the patches of an image go to in each block."),
    "sequence": (
        "Growing perturbation",
        "The same images, step by step farther from what they were. A cross marks a patch whose "
        "first expert is not what it was at the beginning.",
    ),
}


def routing_sections(experiments: Sequence[Experiment]) -> tuple[list[Section], list[str]]:
    """Looks into the models that were trained on a data set.

    Of the first seed everything is drawn and measured, of further ones only how the
    experiments compare.

    Args:
      experiments: Experiments with the same data set, in order.

    Returns:
      Sections, and a warning for each thing that could not be shown.
    """
    pictures: dict[str, list[Picture]] = {kind: [] for kind in _KINDS}
    first, warnings = None, []
    for seed, runs in runs_by_seed(experiments).items():
        if first is not None and len(runs) == 1:
            continue  # nothing to compare
        opened, failed = open_models(runs)
        warnings += failed
        for group in alike(opened):
            drawn = _compare(group, seed) if first is not None else _draw(group, seed)
            try:
                for kind, picture in drawn:
                    pictures[kind].append(picture)
            except ConfigError as error:
                warnings.append(f"pictures are missing: {error}")
        first = opened if first is None else first
    sections = [
        Section(kind, title, text, pictures=pictures[kind])
        for kind, (title, text) in _KINDS.items()
    ]
    small = [run for run in first or [] if _num_images(run) <= MOST_IMAGES]
    return [*sections, _robustness(small), _specialisation(small)], warnings


def _num_images(run: OpenedRun) -> int:
    return source.num_examples(run.config.dataset[_whole_split(run)])


def _whole_split(run: OpenedRun) -> str:
    return run.choose_split(None, two_views=False)


def _robustness(runs: Sequence[OpenedRun]) -> Section:
    levels = {kind: default_levels(kind) for kind in KINDS}
    tables = [robustness_table(run, _whole_split(run), levels).assign(run=run.name) for run in runs]
    pictures = []
    if tables:
        make = functools.partial(robustness_figure, pd.concat(tables, ignore_index=True), UNITS)
        names = " and ".join(run.name for run in runs)
        pictures = [drawing(make, f"Robustness of {names} to noise and small shifts.")]
    return Section("robustness", *_ROBUSTNESS, pictures=pictures)


def _specialisation(runs: Sequence[OpenedRun]) -> Section:
    pictures = []
    for run in runs:
        block = run.blocks[-1]
        found = measure_specialisation(run, _whole_split(run), [block])
        figure = specialisation_figure(found, block, title=run.name)
        caption = f"{run.name}, {block}"
        pictures.append(photograph(figure, f"Specialisation of the experts: {caption}.", caption))
    return Section("specialisation", *_SPECIALISATION, pictures=pictures)


def _draw(
    runs: Sequence[OpenedRun],
    seed: int,
    split: str | None = None,
    kinds: Collection[str] = tuple(_KINDS),
) -> Iterator[tuple[str, Picture]]:
    """Draws models on the same images; yields the kind of each picture with it."""
    for name, figure in draw_pictures(runs, split=split, num_images=NUM_IMAGES):
        kind, _, subject = name.partition("_")
        if kind not in kinds:
            continue
        caption = f"{subject or ' and '.join(run.name for run in runs)}, seed {seed}"
        yield kind, photograph(figure, f"{_KINDS[kind][0]}: {caption}.", caption)


def _compare(runs: Sequence[OpenedRun], seed: int) -> Iterator[tuple[str, Picture]]:
    """Draws only how models compare, if there are several and two views."""
    pairs = [split for split in runs[0].config.dataset if runs[0].has_two_views(split)]
    if pairs and len(runs) > 1:
        split = runs[0].choose_split(None, two_views=True)
        yield from _draw(runs, seed, split, ["comparison"])
