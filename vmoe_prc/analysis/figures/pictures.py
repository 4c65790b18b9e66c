"""Figures of the routing of one or several runs on the same images."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun, ValueRange
from vmoe_prc.analysis.perturbations import PERTURBATIONS
from vmoe_prc.analysis.robustness import ATTACKS, default_levels, make_perturbation
from vmoe_prc.config import ConfigError, check_batch
from vmoe_prc.figures.panels import class_titles, to_display
from vmoe_prc.figures.routing_maps import (
    PatchRouting,
    comparison_figure,
    routing_map_figure,
    sequence_figure,
)
from vmoe_prc.figures.view_pairs import routing_pairs_figure
from vmoe_prc.runtime.mesh import batch_sharding, replicated, shard
from vmoe_prc.runtime.processes import gathered
from vmoe_prc.steps.accuracy import main_class
from vmoe_prc.steps.views import match_views

SEQUENCE_IMAGES = 2
SEQUENCES = {"gaussian_noise": (0, 0.02, 0.05, 0.1, 0.2, 0.3), "shift": (0, 1, 2, 3, 4)}

# Maps (N, H, W, C) images, as the model takes them, to the choices of each block.
PatchRouter = Callable[[np.ndarray], dict[str, PatchRouting]]


@dataclasses.dataclass(frozen=True)
class RoutingPicture:
    """A figure of routing.

    Attributes:
      kind: `map`, all blocks of a run; `views`, two views with their matched patches;
        `sequence`, growing perturbation; `comparison`, two views as several runs route them.
      subject: The run of `map` and `views`, the perturbation of `sequence`, or ''.
      figure: The figure.
    """

    kind: Literal["map", "views", "sequence", "comparison"]
    subject: str
    figure: Figure

    @property
    def name(self) -> str:
        """Kind and subject, for a file name."""
        return f"{self.kind}_{self.subject}" if self.subject else self.kind


@dataclasses.dataclass(frozen=True)
class _RoutedRun:
    """A run, the blocks to draw of it, and its compiled router."""

    run: OpenedRun
    blocks: Sequence[str]
    route: PatchRouter

    @property
    def block(self) -> str:
        """The block that figures of one block show."""
        return self.blocks[-1]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images to draw.

    Attributes:
      batch: A batch on the host.
      rows: Rows of it.
      titles: The classes of these rows.
      value_range: Range of the pixel values.
    """

    batch: Mapping[str, np.ndarray]
    rows: np.ndarray
    titles: Sequence[str]
    value_range: ValueRange

    def display(self, images: np.ndarray) -> np.ndarray:
        """Maps images from the value range of the data to [-1, 1], for figures."""
        return to_display(images, self.value_range)


def draw_pictures(
    runs: Sequence[OpenedRun],
    *,
    split: str | None = None,
    blocks: Sequence[str] | None = None,
    sequences: Mapping[str, Sequence[float]] | None = None,
    num_images: int = 4,
) -> Iterator[RoutingPicture]:
    """Draws the first images of the first run's data, of different classes where possible.

    Args:
      runs: Opened runs, whose models take images of one size.
      split: Name of a split with one view or two; by default one split of each kind, where
        there is one.
      blocks: Blocks for the maps, the last of which is used for the other figures; by
        default all blocks with experts.
      sequences: Levels by kind of perturbation, from 0; `SEQUENCES` by default.
      num_images: Images to draw.

    Yields:
      Figures: a map of each run and a sequence of each kind from a split with one view; the
      matched views of each run, and of several runs their comparison, from a split with two.

    Raises:
      ConfigError: If there is no such split, block or perturbation, or a run cannot take
        the images of the first.
    """
    if num_images < 1:
        raise ConfigError("--images", num_images, "expected at least 1")
    sequences = sequences or SEQUENCES
    for kind in sequences:
        default_levels(kind)
        if kind in ATTACKS:
            raise ConfigError("--perturbation", kind, "is an attack on one run, not a sequence")
    models = [_RoutedRun(run, run.choose_blocks(blocks), make_patch_router(run)) for run in runs]
    one_view, two_views = (_find_split(runs[0], split, views) for views in (False, True))
    if one_view:
        examples = first_examples(runs, one_view, num_images)
        yield from (_map(model, examples, named=len(runs) > 1) for model in models)
        for kind, levels in sequences.items():
            yield _sequence(models, one_view, examples, kind, levels)
    if two_views:
        yield from _two_views(models, first_examples(runs, two_views, num_images))


def make_patch_router(run: OpenedRun) -> PatchRouter:
    """Builds the function from images on the host to `PatchRouting` by block."""
    step = jax.jit(make_routing_step(run.model), out_shardings=replicated(run.mesh))
    patch_height, patch_width = run.config.model.patch_size

    def route(images):
        grid = (images.shape[1] // patch_height, images.shape[2] // patch_width)
        with jax.set_mesh(run.mesh):
            images = shard(images, batch_sharding(run.mesh))
            _, choices = jax.device_get(step(run.params, images))
        return {
            block: PatchRouting.of_tokens(
                choices[block].experts, choices[block].kept, grid, num_experts=run.num_experts
            )
            for block in run.blocks
        }

    return route


def _map(model: _RoutedRun, examples: Examples, *, named: bool) -> RoutingPicture:
    images = examples.batch["image"]
    routed = model.route(images)
    figure = routing_map_figure(
        examples.display(images[examples.rows]),
        {block: routed[block][examples.rows] for block in model.blocks},
        labels=examples.titles,
        title=model.run.name if named else "",
    )
    return RoutingPicture("map", model.run.name, figure)


def _sequence(
    models: Sequence[_RoutedRun],
    split: str,
    examples: Examples,
    kind: str,
    levels: Sequence[float],
) -> RoutingPicture:
    first, rows = models[0].run, examples.rows[:SEQUENCE_IMAGES]
    perturb = make_perturbation(first, split, kind, seed=0)
    with jax.set_mesh(first.mesh):
        batch = {"image": shard(examples.batch["image"], batch_sharding(first.mesh))}
        steps = [gathered(perturb(batch, float(level), 0)) for level in levels]
    routings = {}
    for model in models:
        parts = [model.route(step)[model.block][rows] for step in steps]
        routings[model.run.name] = dataclasses.replace(
            parts[0],
            experts=np.stack([part.experts for part in parts], axis=1),
            kept=np.stack([part.kept for part in parts], axis=1),
        )
    figure = sequence_figure(
        examples.display(np.stack([step[rows] for step in steps], axis=1)),
        routings,
        [f"{level:g}" for level in levels],
        title=f"{_block_names(models)}, {kind.replace('_', ' ')}",
        unit=PERTURBATIONS[kind].unit,
    )
    return RoutingPicture("sequence", kind, figure)


def _two_views(models: Sequence[_RoutedRun], examples: Examples) -> Iterator[RoutingPicture]:
    views = examples.batch["image"]  # (B, 2, H, W, C)
    shown = examples.display(views[examples.rows])
    routings, pairs = {}, {}
    for model in models:
        run, name = model.run, model.run.name
        routing = model.route(views.reshape(-1, *views.shape[2:]))[model.block]
        experts, kept = (
            x.reshape(-1, 2, *x.shape[1:])[examples.rows] for x in (routing.experts, routing.kept)
        )
        routings[name] = dataclasses.replace(routing, experts=experts, kept=kept)
        on_device = jax.tree.map(jnp.asarray, dict(examples.batch))
        tokens = np.asarray(match_views(run.model, on_device))[examples.rows]
        pairs[name] = np.maximum(tokens - run.class_token, -1)  # of patches
        figure = routing_pairs_figure(
            shown,
            experts[..., 0].reshape(len(shown), 2, -1),
            pairs[name],
            tuple(run.config.model.patch_size),
            num_experts=run.num_experts,
            class_token=False,
            block=f"{name}, {model.block}" if len(models) > 1 else model.block,
            labels=examples.titles,
        )
        yield RoutingPicture("views", name, figure)
    if len(models) == 1:
        return
    if len({routing.first.shape[2:] for routing in routings.values()}) > 1:
        raise ConfigError("--workdir", models[1].run.name, "has patches of another size")
    figure = comparison_figure(
        shown,
        routings,
        pairs[models[0].run.name],
        labels=examples.titles,
        title=_block_names(models),
    )
    yield RoutingPicture("comparison", "", figure)


def _find_split(run: OpenedRun, split: str | None, two_views: bool) -> str | None:
    """Returns the split to draw with one view or two, None if there is none."""
    names = [run.choose_split(split)] if split else list(run.config.dataset)
    if not any(run.has_two_views(name) == two_views for name in names):
        return None
    return run.choose_split(split, two_views=two_views)


def first_examples(runs: Sequence[OpenedRun], split: str, num_images: int) -> Examples:
    """Reads the first batch of the first run's split and chooses images of different classes.

    Args:
      runs: Opened runs.
      split: Name of a split of the first.
      num_images: Images to choose.

    Raises:
      ConfigError: If another run cannot take the images of the first.
    """
    with jax.set_mesh(runs[0].mesh):
        batch: dict[str, Any] = gathered(next(runs[0].batches(split)))
    shape = batch["image"].shape
    for run in runs[1:]:
        size = run.batch_spec("train")["image"].shape[-3:]
        if size != shape[-3:]:
            expected = f"takes images of {size}, but {runs[0].name} has images of {shape[-3:]}"
            raise ConfigError("--workdir", run.name, expected)
        check_batch(run.config, f"dataset.{split}", shape, run.mesh.size)
    rows, classes = _choose_rows(batch, num_images)
    titles = class_titles(classes, runs[0].split(split).class_names)
    return Examples(batch, rows, titles, runs[0].value_range(split))


def _choose_rows(batch: Mapping[str, np.ndarray], num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses rows of as many classes as possible, in the order of the split."""
    classes = np.asarray(main_class(batch["labels"]))
    rows = np.flatnonzero(batch["mask"])
    _, firsts = np.unique(classes[rows], return_index=True)
    others = np.setdiff1d(np.arange(len(rows)), firsts)
    chosen = rows[np.sort(np.concatenate([np.sort(firsts), others])[:num_images])]
    return chosen, classes[chosen]


def _block_names(models: Sequence[_RoutedRun]) -> str:
    return " and ".join(dict.fromkeys(model.block for model in models))
