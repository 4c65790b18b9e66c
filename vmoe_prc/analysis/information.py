"""Information of the first expert of a patch on its class, position and content."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans

from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.arrays import Float, Int
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import main_class
from vmoe_prc.steps.views import merge_views

CLUSTERS = 64
# Patches that the clusters are fitted to.
_FITTED = 20_000


class FirstChoices(NamedTuple):
    """First choices of N images, counting each view as an image.

    Attributes:
      experts: (N, P) by block, of the patches in row-major order, without the class token.
      labels: (N,) classes, -1 for images without labels.
      patches: (N, P, D) raw pixels of each patch, float16.
    """

    experts: dict[str, Int[np.ndarray, "N P"]]
    labels: Int[np.ndarray, " N"]
    patches: Float[np.ndarray, "N P D"]


def first_choices(run: OpenedRun, split: str, blocks: Sequence[str] | None = None) -> FirstChoices:
    """Routes a split without drops, and keeps the first choices of its patches.

    Raises:
      ConfigError: If there is no such split or block.
    """
    split, blocks = run.choose_split(split), run.choose_blocks(blocks)
    route = make_routing_step(run.dropless().model)
    patch = tuple(run.config.model.patch_size)
    offset = int(run.class_token)

    def step(params, batch):
        images, labels = merge_views(batch["image"], batch["labels"])
        _, choices = route(params, images)
        firsts = {b: choices[b].experts[:, offset:, 0] for b in blocks}
        return firsts, main_class(labels), images, batch["mask"]

    step = jax.jit(step, out_shardings=replicated(run.mesh))
    parts = []
    with jax.set_mesh(run.mesh):
        for batch in run.batches(split):
            firsts, labels, images, mask = jax.device_get(step(run.params, batch))
            mask = np.repeat(mask, len(labels) // len(mask))
            parts.append(
                FirstChoices(
                    {b: x[mask].astype(np.int16) for b, x in firsts.items()},
                    labels[mask],
                    cut_patches(images[mask], patch).astype(np.float16),
                )
            )
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def cut_patches(
    images: Float[np.ndarray, "N H W C"], patch_size: tuple[int, int]
) -> Float[np.ndarray, "N P D"]:
    """Cuts images into patches in row-major order, each with its pixels as one vector."""
    num_images, height, width, channels = images.shape
    ph, pw = patch_size
    grid = images.reshape(num_images, height // ph, ph, width // pw, pw, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(num_images, -1, ph * pw * channels)


def information_table(
    run: OpenedRun, split: str | None = None, blocks: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measures what the first experts of patches tell.

    Mutual information is in nats and estimated from counts; its bias is about
    (E - 1) (values - 1) / (2 * tokens). That on classes is over the images with labels.

    Args:
      run: The opened run.
      split: Name of a split; by default one with one view.
      blocks: Blocks to measure; all blocks with experts by default.
      seed: Seed of the clusters.

    Returns:
      One row per block: `entropy`, H(e) of first choices in nats; `experts_in_use`, exp H(e);
      `experts_per_image`, mean of exp H(e | image); `class`, I(e; class); `position`,
      I(e; position of the patch); `content`, I(e; cluster), with `CLUSTERS` k-means clusters of
      raw patch pixels; `class_given_position`, I(e; class | position); `previous_block`,
      I(e; first expert of the same patch in the block before), NaN for the first.

    Raises:
      ConfigError: If there is no such split or block.
    """
    split = run.choose_split(split)
    choices = first_choices(run, split, blocks)
    num_experts = run.num_experts
    num_images, num_patches = next(iter(choices.experts.values())).shape
    labels = np.repeat(choices.labels, num_patches)
    known = labels >= 0
    position = np.tile(np.arange(num_patches), num_images)
    content = _clusters(choices.patches, seed)
    rows, previous = [], None
    for block, experts in choices.experts.items():
        first = experts.ravel().astype(np.int64)
        per_image = np.stack([np.bincount(row, minlength=num_experts) for row in experts])
        rows.append(
            {
                "block": block,
                "entropy": float(_entropy(np.bincount(first, minlength=num_experts))),
                "experts_in_use": float(np.exp(_entropy(np.bincount(first)))),
                "experts_per_image": float(np.mean(np.exp(_entropy(per_image)))),
                "class": mutual_information(first[known], labels[known]),
                "position": mutual_information(first, position),
                "content": mutual_information(first, content),
                "class_given_position": conditional_information(
                    first[known], labels[known], position[known]
                ),
                "previous_block": (
                    np.nan if previous is None else mutual_information(first, previous)
                ),
            }
        )
        previous = first
    return pd.DataFrame(rows)


def mutual_information(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """Estimates I(a; b) in nats from the counts of n pairs; NaN of no pair."""
    if not len(a):
        return np.nan
    size = int(b.max()) + 1
    joint = np.bincount(a.astype(np.int64) * size + b, minlength=(int(a.max()) + 1) * size)
    joint = joint.reshape(-1, size)
    return float(_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint.ravel()))


def conditional_information(
    a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"], given: Int[np.ndarray, " n"]
) -> float:
    """Estimates I(a; b | given) in nats, as I(a; (b, given)) - I(a; given); NaN of no pair."""
    if not len(a):
        return np.nan
    both = b.astype(np.int64) * (int(given.max()) + 1) + given
    return mutual_information(a, both) - mutual_information(a, given)


def _entropy(counts: Any) -> Any:
    """Entropy in nats of the distribution in the last axis of counts."""
    share = np.asarray(counts, np.float64)
    share = share / np.maximum(share.sum(axis=-1, keepdims=True), 1)
    return -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)


def _clusters(patches: Float[np.ndarray, "N P D"], seed: int) -> Int[np.ndarray, " n"]:
    flat = patches.reshape(-1, patches.shape[-1])
    rows = np.random.default_rng(seed).permutation(len(flat))[:_FITTED]
    count = min(CLUSTERS, len(np.unique(flat[rows], axis=0)))
    # Scikit-learn's default, "auto", is all that a type checker sees of `n_init`.
    means = MiniBatchKMeans(
        count,
        random_state=seed,
        n_init=3,  # pyright: ignore[reportArgumentType]
        batch_size=4096,
    )
    means.fit(flat[rows].astype(np.float32))
    parts = np.array_split(flat, max(1, len(flat) // 100_000))
    return np.concatenate([means.predict(part.astype(np.float32)) for part in parts])


def shares_of_entropy(table: pd.DataFrame) -> Mapping[str, pd.Series]:
    """Returns I(e; x) / H(e), from 0 to 1, for each x of the table."""
    names = ("class", "position", "content", "previous_block")
    return {name: table[name] / table["entropy"] for name in names}
