"""Pictures of the routing of one or more runs on the same images."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.perturbations import PERTURBATIONS
from vmoe_prc.analysis.robustness import ATTACKS, default_levels, make_perturbation
from vmoe_prc.analysis.routing import make_routing_step
from vmoe_prc.config import ConfigError, check_batch
from vmoe_prc.figures.routing_maps import (
    PatchRouting,
    comparison_figure,
    routing_map_figure,
    sequence_figure,
)
from vmoe_prc.figures.view_pairs import routing_pairs_figure
from vmoe_prc.runtime.mesh import batch_sharding
from vmoe_prc.steps.views import match_views

SEQUENCE_IMAGES = 2
SEQUENCES = {"gaussian_noise": (0, 0.02, 0.05, 0.1, 0.2, 0.3), "shift": (0, 1, 2, 3, 4)}

# Takes (N, H, W, C) images in [-1, 1] to the choices of each block.
PatchRouter = Callable[[np.ndarray], dict[str, PatchRouting]]


def draw_pictures(
    runs: Sequence[OpenedRun],
    *,
    split: str | None = None,
    blocks: Sequence[str] | None = None,
    sequences: Mapping[str, Sequence[float]] | None = None,
    num_images: int = 4,
) -> Iterator[tuple[str, Figure]]:
    """Draws the first images of the first run's data, of a class each while there are more.

    Args:
      runs: Opened runs, whose models take images of one size.
      split: Name of a split with one view or two; by default one of each, if there is.
      blocks: Blocks for the maps, the last of which is used for the other pictures; by
        default all that have experts.
      sequences: Levels by kind of perturbation, from 0; `SEQUENCES` by default.
      num_images: Images to draw.

    Yields:
      Names and figures: `map_RUN`, all blocks; `views_RUN`, two views with their matched
      patches; `sequence_KIND`, growing perturbation; and of several runs `comparison`, two
      views. The latter two show all runs.

    Raises:
      ConfigError: If there is no such split, block or perturbation, or a run cannot take
        the images of the first.
    """
    if jax.process_count() > 1:
        raise ConfigError("processes", jax.process_count(), "pictures are drawn by one process")
    if num_images < 1:
        raise ConfigError("--images", num_images, "expected at least 1")
    sequences = sequences or SEQUENCES
    for kind in sequences:
        default_levels(kind)
        if kind in ATTACKS:
            raise ConfigError("--perturbation", kind, "is an attack on one run, not a sequence")
    chosen = {run.name: run.choose_blocks(blocks) for run in runs}
    routers = {run.name: make_patch_router(run) for run in runs}
    first = runs[0]
    one_view, two_views = (_find_split(first, split, views) for views in (False, True))
    if one_view:
        images, shown, labels = _first_images(first, one_view, num_images)
        _check_images(runs, one_view, images.shape)
        for name, route in routers.items():
            routed = route(images)
            routings = {block: routed[block][shown] for block in chosen[name]}
            title = name if len(runs) > 1 else ""
            yield (
                f"map_{name}",
                routing_map_figure(images[shown], routings, labels=labels, title=title),
            )
        for kind, levels in sequences.items():
            some = shown[:SEQUENCE_IMAGES]
            yield f"sequence_{kind}", _sequence(first, routers, chosen, images, some, kind, levels)
    if two_views:
        yield from _two_views(runs, routers, chosen, two_views, num_images)


def make_patch_router(run: OpenedRun) -> PatchRouter:
    """Builds the function from images on the host to `PatchRouting` by block."""
    step = jax.jit(make_routing_step(run.model))
    patch_height, patch_width = run.config.model.patch_size

    def route(images):
        grid = (images.shape[1] // patch_height, images.shape[2] // patch_width)
        with jax.set_mesh(run.mesh):
            images = jax.device_put(images, batch_sharding(run.mesh))
            _, choices = jax.device_get(step(run.params, images))
        return {
            block: PatchRouting.of_tokens(
                choices[block].experts, choices[block].kept, grid, num_experts=run.num_experts
            )
            for block in run.blocks
        }

    return route


def _sequence(run, routers, chosen, images, shown, kind, levels) -> Figure:
    perturb = make_perturbation(run, kind, seed=0)
    with jax.set_mesh(run.mesh):
        batch = {"image": jax.device_put(images, batch_sharding(run.mesh))}
        steps = [np.asarray(perturb(batch, float(level), 0)) for level in levels]
    routings = {}
    for name, route in routers.items():
        parts = [route(step)[chosen[name][-1]][shown] for step in steps]
        routings[name] = dataclasses.replace(
            parts[0],
            experts=np.stack([part.experts for part in parts], axis=1),
            kept=np.stack([part.kept for part in parts], axis=1),
        )
    return sequence_figure(
        np.stack([step[shown] for step in steps], axis=1),
        routings,
        [f"{level:g}" for level in levels],
        title=f"{_block_name(chosen)}, {kind.replace('_', ' ')}",
        unit=PERTURBATIONS[kind].unit,
    )


def _two_views(runs, routers, chosen, split, num_images) -> Iterator[tuple[str, Figure]]:
    batch = _first_batch(runs[0], split)
    views = batch["image"]  # (B, 2, H, W, C)
    _check_images(runs, split, views.shape)
    shown, labels = _choose_images(batch, num_images)
    routings = {}
    for run in runs:
        block = chosen[run.name][-1]
        routing = routers[run.name](views.reshape(-1, *views.shape[2:]))[block]
        experts, kept = (
            x.reshape(-1, 2, *x.shape[1:])[shown] for x in (routing.experts, routing.kept)
        )
        routings[run.name] = dataclasses.replace(routing, experts=experts, kept=kept)
        on_device = jax.tree.map(jnp.asarray, batch)
        pairs = np.asarray(match_views(run.model, on_device))[shown] - run.class_token
        figure = routing_pairs_figure(
            views[shown],
            experts[..., 0].reshape(len(shown), 2, -1),
            np.maximum(pairs, -1),
            tuple(run.config.model.patch_size),
            num_experts=run.num_experts,
            class_token=False,
            block=f"{run.name}, {block}" if len(runs) > 1 else block,
            labels=labels,
        )
        yield f"views_{run.name}", figure
    if len(runs) > 1:
        grids = {routing.first.shape[2:] for routing in routings.values()}
        if len(grids) > 1:
            raise ConfigError("--workdir", runs[1].name, "has patches of another size")
        title = _block_name(chosen)
        yield (
            "comparison",
            comparison_figure(
                views[shown], routings, np.maximum(pairs, -1), labels=labels, title=title
            ),
        )


def _find_split(run: OpenedRun, split: str | None, two_views: bool) -> str | None:
    """Returns the split to draw with one view or two, None where there is none."""
    names = [run.choose_split(split)] if split else list(run.config.dataset)
    if not any(run.has_two_views(name) == two_views for name in names):
        return None
    return run.choose_split(split, two_views=two_views)


def _first_batch(run: OpenedRun, split: str) -> dict[str, np.ndarray]:
    with jax.set_mesh(run.mesh):
        return jax.device_get(next(run.batches(split)))


def _first_images(run, split, num_images) -> tuple[np.ndarray, np.ndarray, list[str]]:
    batch = _first_batch(run, split)
    return batch["image"], *_choose_images(batch, num_images)


def _choose_images(batch, num_images: int) -> tuple[np.ndarray, list[str]]:
    """Chooses rows of a batch, as many classes as can be, in the order of the split."""
    classes = batch["labels"].argmax(-1)
    rows = np.flatnonzero(batch["mask"])
    _, firsts = np.unique(classes[rows], return_index=True)
    others = np.setdiff1d(np.arange(len(rows)), firsts)
    shown = rows[np.sort(np.concatenate([np.sort(firsts), others])[:num_images])]
    return shown, [f"class {c}" for c in classes[shown]]


def _check_images(runs: Sequence[OpenedRun], split: str, shape: tuple[int, ...]) -> None:
    for run in runs[1:]:
        size = run.batch_spec("train")["image"].shape[-3:]
        if size != shape[-3:]:
            expected = f"takes images of {size}, but those of {runs[0].name} are {shape[-3:]}"
            raise ConfigError("--workdir", run.name, expected)
        check_batch(run.config, f"dataset.{split}", shape, run.mesh.size)


def _block_name(chosen: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(dict.fromkeys(blocks[-1] for blocks in chosen.values()))
