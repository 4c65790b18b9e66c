"""The routing maps of a page that a reader steps through: images, perturbations, blocks, runs."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image

from vmoe_prc.analysis.choices import Choices, make_routing_step
from vmoe_prc.analysis.figures.pictures import Examples, first_examples
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.robustness import make_perturbation
from vmoe_prc.figures.interactive import expert_hex_colors, patch_choices, picture_url
from vmoe_prc.runtime.mesh import batch_sharding

# The most that a page shows: images, models, their last blocks, and choices of a patch.
MAX_IMAGES, MAX_MODELS, MAX_BLOCKS, MAX_CHOICES = 12, 4, 2, 2
# Bytes of the data of an explorer; further images are left out.
MAX_BYTES = 4_000_000
# Pixels of the longer side of a picture.
MAX_SIDE = 160
STEPS = {"gaussian_noise": (0.02, 0.05, 0.1, 0.2, 0.3), "shift": (1, 2, 3, 4)}


def explorer_data(runs: Sequence[OpenedRun], split: str) -> dict[str, Any]:
    """Routes the first images of a split, and perturbed ones, without dropping tokens.

    Args:
      runs: Runs whose models take the same images, on one process.
      split: A split with one view.

    Returns:
      What `explorer.js` shows: `steps`, their labels; `images`, each with its `title`, its
      `pictures` by step, and the `choices` by model, block and step; `models`.
    """
    runs = [run.dropless() for run in runs[:MAX_MODELS]]
    examples = first_examples(runs, split, MAX_IMAGES)
    labels, images = _perturbed(runs[0], split, examples)
    blocks = [run.blocks[-MAX_BLOCKS:] for run in runs]
    routed = [[_route(run, step) for step in images] for run in runs]
    counts = [_count(run, images[0]) for run in runs]
    shown, size = [], 0
    for row, title in zip(examples.rows.tolist(), examples.titles, strict=True):
        choices = [
            {
                block: [
                    _choices(step[block], row, count, with_gates=number == 0)
                    for number, step in enumerate(steps)
                ]
                for block in own
            }
            for steps, own, count in zip(routed, blocks, counts, strict=True)
        ]
        pictures = [_picture(examples.display(step[row])) for step in images]
        image = {"title": title, "pictures": pictures, "choices": choices}
        size += len(json.dumps(image))
        if shown and size > MAX_BYTES:
            break
        shown.append(image)
    return {"steps": labels, "images": shown, "models": _models(runs, blocks, images[0])}


def _perturbed(
    run: OpenedRun, split: str, examples: Examples
) -> tuple[list[str], list[np.ndarray]]:
    """Returns labels and images of all steps; the first is without change."""
    labels, images = ["no change"], [np.asarray(examples.batch["image"])]
    with jax.set_mesh(run.mesh):
        batch = {"image": jax.device_put(examples.batch["image"], batch_sharding(run.mesh))}
        for kind, levels in STEPS.items():
            perturb = make_perturbation(run, split, kind, seed=0)
            for level in levels:
                labels.append(f"{kind.replace('_', ' ')}, {level:g}")
                images.append(np.asarray(perturb(batch, float(level), 0)))
    return labels, images


def _route(run: OpenedRun, images: np.ndarray) -> dict[str, Choices]:
    with jax.set_mesh(run.mesh):
        images = jax.device_put(images, batch_sharding(run.mesh))
        return jax.device_get(jax.jit(make_routing_step(run.model))(run.params, images))[1]


def _choices(choices: Choices, row: int, count: int, *, with_gates: bool) -> dict[str, Any]:
    gates = np.asarray(choices.gates[row]) if with_gates else None
    experts, kept = np.asarray(choices.experts[row]), np.asarray(choices.kept[row])
    return patch_choices(experts, gates, kept, count, MAX_CHOICES)


def _models(
    runs: Sequence[OpenedRun], blocks: Sequence[Sequence[str]], images: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "name": run.name,
            "blocks": list(own),
            "grid": list(_grid(run, images)),
            "colours": expert_hex_colors(run.num_experts),
        }
        for run, own in zip(runs, blocks, strict=True)
    ]


def _grid(run: OpenedRun, images: np.ndarray) -> tuple[int, int]:
    height, width = run.config.model.patch_size
    return images.shape[1] // height, images.shape[2] // width


def _count(run: OpenedRun, images: np.ndarray) -> int:
    rows, columns = _grid(run, images)
    return rows * columns


def _picture(image: np.ndarray) -> str:
    pixels = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture_url(np.asarray(picture), "WEBP", quality=80)
