"""Evaluation of an ensemble: accuracy, agreement taken apart, and what routing is worth."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmoe_prc.alignment import match_patches, view1_from_view0
from vmoe_prc.data.device_views import device_two_views
from vmoe_prc.study.ensemble.training import Task

# Images with fewer matched pairs say nothing about the place: any pairing is nearly the same.
SMALLEST_PAIRS = 4
# Ways to route the tokens of view 0, see `probe`.
ROUTINGS = ("own", "other_view", "noisy_copy", "random", "next_best", "one_expert")
NOISE = 0.3
# Standard deviations, as fractions of [0, 1], at which choices are compared with the clean ones.
NOISE_LEVELS = (0.1, 0.3)


def evaluate(
    task: Task,
    params: Any,
    images: np.ndarray,
    labels: np.ndarray,
    batch: int = 200,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Evaluates all members on every image, with the same crops and noise for all.

    Args:
      task: The task.
      params: Parameters with a leading axis M.
      images: (N, side, side) uint8; the last images beyond a multiple of `batch` are left out.
      labels: (N,) classes.
      batch: Images at a time, a multiple of the images of a routing group.
      seed: Seed of the crops and of the noise.

    Returns:
      By member: `accuracy` and `nll` of whole images, `crop_accuracy` (mean over two crops of
      each image), `same_label` (share of images whose two crops get the same label),
      `accuracy/{routing}` and `nll/{routing}` of the first crop for each of `ROUTINGS`, the sums
      of `decompose` by block and over blocks, those over blocks of the first choices of clean and
      noisy whole images as `noise_{level}/…`, and `use`, the exponential of the entropy of the
      experts' loads, divided by their number. Shares are in [0, 1].

    Raises:
      ValueError: If there is less than one batch.
    """
    if len(images) < batch:
        raise ValueError(f"expected at least {batch} images, not {len(images)}")
    step = jax.jit(jax.vmap(lambda p, *a: _sums(task, p, *a), in_axes=(0, None, None, None)))
    total = None
    for i in range(len(images) // batch):
        part = slice(i * batch, (i + 1) * batch)
        key = jax.random.fold_in(jax.random.key(seed), i)
        sums = step(params, images[part], jnp.asarray(labels[part], jnp.int32), key)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.tree.map(np.asarray, jax.device_get(total))
    members = len(next(iter(total["scalars"].values())))
    return [_finish(jax.tree.map(lambda x, m=m: x[m], total)) for m in range(members)]


def decompose(joint: np.ndarray, image_chance: float, pairs: float) -> dict[str, float]:
    """Takes the agreement of first choices apart into chance, image and place.

    Args:
      joint: (E, E) counts of the first choices of matched patches, view 0 by view 1.
      image_chance: Sum over images j of sum_e n_je m_je / n_j, the expected number of agreeing
        pairs if the matched patches of each image are paired at random.
      pairs: Number of matched pairs.

    Returns:
      `top1` = `chance` + `image` + `place`, shares in [0, 1]; `kappa`, agreement corrected for
      chance by the loads (Cohen 1960), and `kappa_place`, corrected for `image_chance`; NaN
      where chance always agrees.
    """
    share = joint / pairs
    observed, chance = float(np.trace(share)), float(share.sum(1) @ share.sum(0))
    within = image_chance / pairs
    return {
        "top1": observed,
        "chance": chance,
        "image": within - chance,
        "place": observed - within,
        "kappa": _corrected(observed, chance),
        "kappa_place": _corrected(observed, within),
    }


def _decomposed(counts: Mapping[str, Any]) -> dict[str, float]:
    return decompose(counts["joint"], float(counts["image_chance"]), float(counts["pairs"]))


def _corrected(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def _sums(task: Task, params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
    model = task.model(deterministic=True)
    num_experts = task.num_experts

    def apply(x, logits=None):
        return _apply_routed(model, params, x, logits)

    source = images.astype(jnp.float32) / 127.5 - 1
    keys = jax.random.split(key, 3)
    whole, routings = apply(jnp.repeat(source[..., None], 3, axis=-1))
    scalars = {"images": jnp.float32(len(images)), **_scores("", whole, labels)}
    loads = {
        block: jnp.sum(jax.nn.one_hot(r.experts, num_experts), axis=(0, 1, 2))
        for block, r in routings.items()
    }
    first = {b: r.experts[..., 0].reshape(len(images), -1) for b, r in routings.items()}
    noise_counts = {}
    for level in NOISE_LEVELS:
        grain = 2 * level * jax.random.normal(keys[1], source.shape)
        noisy = jnp.clip(source + grain, -1, 1)
        _, noisy_routings = apply(jnp.repeat(noisy[..., None], 3, axis=-1))
        for block, routing in noisy_routings.items():
            both = jnp.stack([first[block], routing.experts[..., 0].reshape(len(images), -1)], 1)
            tokens = jnp.arange(both.shape[-1])
            same = jnp.broadcast_to(tokens[:, None], (len(images), len(tokens), 2))
            noise_counts[f"noise_{level:g}/{block}"] = _pair_counts(both, same, num_experts)
    views, matrices = device_two_views(keys[0], source, task.smallest_area, task.side)
    both, routings = apply(views.reshape(-1, *views.shape[2:]))
    predictions = jnp.argmax(both, -1).reshape(-1, 2)
    scalars["crop_accuracy"] = jnp.mean(predictions == labels[:, None], axis=1).sum()
    scalars["same_label"] = jnp.sum(predictions[:, 0] == predictions[:, 1])

    v1_from_v0 = view1_from_view0(matrices)
    pairs = match_patches(v1_from_v0, task.side, task.patch_size)
    counts = {}
    for block, routing in routings.items():
        choices = routing.experts[..., 0].reshape(len(images), 2, -1)
        counts[block] = _pair_counts(choices, pairs, num_experts)

    # (B, 2, T, E) logits of each block, from which view 0 is routed in other ways.
    logits = {
        block: r.logits.reshape(len(images), 2, -1, num_experts) for block, r in routings.items()
    }
    noisy = views[:, 0] + 2 * NOISE * jax.random.normal(keys[1], (*views[:, 0].shape[:-1], 1))
    _, noisy_routings = apply(jnp.clip(noisy, -1, 1))
    class_pairs = match_patches(v1_from_v0, task.side, task.patch_size, pair_class_tokens=True)
    routes: dict[str, Mapping[str, jax.Array]] = {
        "own": {b: x[:, 0] for b, x in logits.items()},
        "other_view": {b: _from_other_view(x, class_pairs) for b, x in logits.items()},
        "noisy_copy": {b: r.logits for b, r in noisy_routings.items()},
        "random": {
            b: jax.random.permutation(keys[2], x[:, 0], axis=-1, independent=True)
            for b, x in logits.items()
        },
        "next_best": {b: _next_best(x[:, 0], task.k) for b, x in logits.items()},
        "one_expert": {b: jnp.zeros_like(x[:, 0]) for b, x in logits.items()},
    }
    for name in ROUTINGS:
        swapped, _ = apply(views[:, 0], routes[name])
        scalars |= _scores(f"/{name}", swapped, labels)
    return {"scalars": scalars, "loads": loads, "counts": counts, "noise": noise_counts}


def _scores(suffix: str, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        f"accuracy{suffix}": jnp.sum(jnp.argmax(logits, -1) == labels).astype(jnp.float32),
        f"nll{suffix}": jnp.sum(nll),
    }


def _apply_routed(
    model: nn.Module, params: Any, images: jax.Array, logits: Mapping[str, jax.Array] | None
) -> Any:
    """Applies the model; where logits are given, the routers of their blocks answer with them."""
    if logits is None:
        return model.apply({"params": params}, images)

    def intercept(call, args, kwargs, context):
        path = context.module.path
        if path[-2:] != ("Router", "dense"):
            return call(*args, **kwargs)
        block = next(name for name in path if name.startswith("encoderblock_"))
        return logits[block].reshape(*args[0].shape[:-1], -1)

    with nn.intercept_methods(intercept):
        return model.apply({"params": params}, images)


def _from_other_view(logits: jax.Array, pairs: jax.Array) -> jax.Array:
    """Gives the tokens of view 0 the logits of their matches; others keep theirs.

    Args:
      logits: (B, 2, T, E).
      pairs: (B, T, 2), patches in order and the class pair last.
    """
    matched = pairs[..., :1] >= 0
    index = jnp.maximum(pairs[..., 1], 0)[..., None]
    # The class token comes first among tokens, and last among pairs.
    own = jnp.roll(logits[:, 0], -1, axis=1)
    other = jnp.where(matched, jnp.take_along_axis(logits[:, 1], index, axis=1), own)
    return jnp.roll(other, 1, axis=1)


def _next_best(logits: jax.Array, k: int) -> jax.Array:
    """Exchanges the K best experts of each token with the next K."""
    order = jnp.argsort(-logits, axis=-1)
    swapped = jnp.concatenate([order[..., k : 2 * k], order[..., :k], order[..., 2 * k :]], axis=-1)
    values = jnp.take_along_axis(logits, order, axis=-1)
    return jnp.take_along_axis(values, jnp.argsort(swapped, axis=-1), axis=-1)


def _pair_counts(first: jax.Array, pairs: jax.Array, num_experts: int) -> dict[str, jax.Array]:
    """Sums over images for `decompose`; first (B, 2, T), pairs (B, X, 2)."""
    matched = pairs[..., 0] >= 0
    count = jnp.sum(matched, axis=1)
    counted = matched & (count >= SMALLEST_PAIRS)[:, None]
    a, b = (
        jax.nn.one_hot(
            jnp.take_along_axis(first[:, v], jnp.maximum(pairs[..., v], 0), axis=1), num_experts
        )
        * counted[..., None]
        for v in (0, 1)
    )
    per_image = jnp.sum(jnp.sum(a, 1) * jnp.sum(b, 1), axis=-1) / jnp.maximum(count, 1)
    return {
        "joint": jnp.einsum("bxe,bxf->ef", a, b),
        "image_chance": jnp.sum(per_image),
        "pairs": jnp.sum(counted).astype(jnp.float32),
    }


def _finish(total: Mapping[str, Any]) -> dict[str, float]:
    scalars = dict(total["scalars"])
    images = float(scalars.pop("images"))
    result = {name: float(value) / images for name, value in scalars.items()}
    blocks = [_decomposed(counts) for counts in total["counts"].values()]
    for block, parts in zip(total["counts"], blocks, strict=True):
        result |= {f"{block}/{name}": value for name, value in parts.items()}
    result |= {name: float(np.mean([b[name] for b in blocks])) for name in blocks[0]}
    for level in NOISE_LEVELS:
        prefix = f"noise_{level:g}/"
        parts = [_decomposed(v) for k, v in total["noise"].items() if k.startswith(prefix)]
        result |= {prefix + name: float(np.mean([p[name] for p in parts])) for name in parts[0]}
    use = []
    for load in total["loads"].values():
        share = load / load.sum()
        used = share[share > 0]
        use.append(np.exp(-np.sum(used * np.log(used))) / len(share))
    result["use"] = float(np.mean(use))
    return result
