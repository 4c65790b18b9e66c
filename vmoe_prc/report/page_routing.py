"""The parts of the page that open the models: figures, robustness, specialisation."""

import functools
from collections.abc import Collection, Iterator, Sequence

import pandas as pd

from vmoe_prc.analysis.experts import measure_specialisation
from vmoe_prc.analysis.figures.expert_panels import specialisation_figure
from vmoe_prc.analysis.figures.pictures import draw_pictures
from vmoe_prc.analysis.figures.robustness_curves import robustness_figure
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.robustness import UNITS, default_levels, robustness_table
from vmoe_prc.config import ConfigError
from vmoe_prc.report.embedding import Picture, drawing, photograph
from vmoe_prc.report.experiments import Experiment
from vmoe_prc.report.explorer import explorer_data
from vmoe_prc.report.models import group_by_input, named_styles, open_models, runs_by_seed
from vmoe_prc.report.page import Section

NUM_IMAGES = 3
# Perturbations that a page measures, and the most images of a split that it measures.
PERTURBATIONS = ("gaussian_noise", "shift")
MAX_IMAGES = 2000
_EXPLORE = (
    "Routing, patch by patch",
    "The colour of a patch is its first expert. Point at a patch for its choices, choose an expert "
    "to see its patches, and step through perturbations: a cross marks a patch whose first expert "
    "is another one than without change. No token is dropped here.",
)
_ROBUSTNESS = (
    "Robustness",
    "How many tokens go to other experts, how many images are still classified correctly, and "
    "how far the logits move, as the images are perturbed.",
)
_SPECIALISATION = (
    "Specialisation",
    "The experts of the last block with experts: their share of the tokens, the classes of the "
    "images that these tokens come from, the entropy of the gates, and the similarity of the "
    "experts.",
)
# Title and explanation of each kind of `RoutingPicture`, in the order of the page.
_PICTURES = {
    "comparison": (
        "Two views, side by side",
        "The same images for all runs. The colour of a patch is its first expert. A cross marks "
        "a patch whose match in the other view goes to another expert: the fewer crosses, the "
        "more consistent the router.",
    ),
    "views": (
        "Matched patches",
        "Two views of an image; lines join the patches that show the same place.",
    ),
    "map": ("Routing maps", "The experts of the patches of an image in each block."),
    "sequence": (
        "Growing perturbation",
        "The same images under a growing perturbation. A cross marks a patch whose first expert "
        "differs from that in the unperturbed image.",
    ),
}


def routing_sections(experiments: Sequence[Experiment]) -> tuple[list[Section], list[str]]:
    """Opens the models that were trained on a data set, draws and measures them.

    All figures are made for the first seed, only comparisons for the others.

    Args:
      experiments: Experiments with the same data set, in order.

    Returns:
      Sections, and a warning for each figure that could not be made.
    """
    pictures: dict[str, list[Picture]] = {kind: [] for kind in _PICTURES}
    first, warnings = None, []
    for seed, runs in runs_by_seed(experiments).items():
        if first is not None and len(runs) == 1:
            continue  # nothing to compare
        opened, failed = open_models(runs)
        warnings += failed
        for group in group_by_input(opened):
            drawn = _compare(group, seed) if first is not None else _draw(group, seed)
            try:
                for kind, picture in drawn:
                    pictures[kind].append(picture)
            except ConfigError as error:
                warnings.append(f"figures are missing: {error}")
        first = opened if first is None else first
    sections = [
        Section(kind, title, text, pictures=pictures[kind])
        for kind, (title, text) in _PICTURES.items()
    ]
    explorers = []
    for group in group_by_input(first or []):
        try:
            explorers.append(explorer_data(group, _whole_split(group[0])))
        except ConfigError as error:
            warnings.append(f"the interactive map is missing: {error}")
    sections.insert(0, Section("explore", *_EXPLORE, explorers=explorers))
    small = [run for run in first or [] if run.num_images(_whole_split(run)) <= MAX_IMAGES]
    robustness = _robustness(small, experiments)
    return [*sections, robustness, _specialisation(small)], warnings


def _whole_split(run: OpenedRun) -> str:
    return run.choose_split(None, two_views=False)


def _robustness(runs: Sequence[OpenedRun], experiments: Sequence[Experiment]) -> Section:
    levels = {kind: default_levels(kind) for kind in PERTURBATIONS}
    tables = [robustness_table(run, _whole_split(run), levels).assign(run=run.name) for run in runs]
    pictures = []
    if tables:
        table = pd.concat(tables, ignore_index=True)
        make = functools.partial(robustness_figure, table, UNITS, named_styles(experiments))
        names = " and ".join(run.name for run in runs)
        pictures = [drawing(make, f"Robustness of {names} to noise and small shifts.")]
    return Section("robustness", *_ROBUSTNESS, pictures=pictures)


def _specialisation(runs: Sequence[OpenedRun]) -> Section:
    pictures = []
    for run in runs:
        block = run.blocks[-1]
        split = _whole_split(run)
        found = measure_specialisation(run, split, [block])
        names = run.split(split).class_names
        figure = specialisation_figure(found, block, title=run.name, class_names=names)
        caption = f"{run.name}, {block}"
        pictures.append(photograph(figure, f"Specialisation of the experts: {caption}.", caption))
    return Section("specialisation", *_SPECIALISATION, pictures=pictures)


def _draw(
    runs: Sequence[OpenedRun],
    seed: int,
    split: str | None = None,
    kinds: Collection[str] = tuple(_PICTURES),
) -> Iterator[tuple[str, Picture]]:
    """Draws models on the same images; yields figures with their kind."""
    for drawn in draw_pictures(runs, split=split, num_images=NUM_IMAGES):
        if drawn.kind in kinds:
            subject = drawn.subject or " and ".join(run.name for run in runs)
            caption = f"{subject}, seed {seed}"
            alt = f"{_PICTURES[drawn.kind][0]}: {caption}."
            yield drawn.kind, photograph(drawn.figure, alt, caption)


def _compare(runs: Sequence[OpenedRun], seed: int) -> Iterator[tuple[str, Picture]]:
    """Draws only the comparison, if there are several models and two views."""
    pairs = [split for split in runs[0].config.dataset if runs[0].has_two_views(split)]
    if pairs and len(runs) > 1:
        split = runs[0].choose_split(None, two_views=True)
        yield from _draw(runs, seed, split, ["comparison"])
