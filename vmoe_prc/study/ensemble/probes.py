"""Evaluation of an ensemble: accuracy, agreement taken apart, and what routing is worth."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmoe_prc.alignment import match_patches, view1_from_view0
from vmoe_prc.analysis.external_routing import apply_with_logits
from vmoe_prc.arrays import Array
from vmoe_prc.data.device_views import device_two_views
from vmoe_prc.evaluation.decomposition import Decomposition, average, decompose, decomposition_sums
from vmoe_prc.models import apply_model
from vmoe_prc.study.ensemble.training import Task

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
      `accuracy/{routing}` and `nll/{routing}` of the first crop for each of `ROUTINGS`, `top1` and
      the `Decomposition` by block and over blocks, and of the first choices of clean and noisy
      whole images as `noise_{level}/…`; `use`, the exponential of the entropy of the experts'
      loads, divided by their number. Shares are in [0, 1].

    Raises:
      ValueError: If there is less than one batch.
    """
    if len(images) < batch:
        raise ValueError(f"expected at least {batch} images, not {len(images)}")
    model = _Model(task, params)
    total = None
    for i in range(len(images) // batch):
        part = slice(i * batch, (i + 1) * batch)
        key = jax.random.fold_in(jax.random.key(seed), i)
        sums = _sums(
            task, model, jnp.asarray(images[part]), jnp.asarray(labels[part], jnp.int32), key
        )
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.tree.map(np.asarray, jax.device_get(total))
    columns = _finish(total)
    members = len(columns["accuracy"])
    return [{name: float(x[m]) for name, x in columns.items()} for m in range(members)]


@functools.cache
def _compiled_model(task: Task) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the jitted model with its own routing, and with given logits; compiled once."""
    module = task.model(deterministic=True)

    def run(params, images):
        logits, routings = apply_model(module, params, images)
        return logits, {b: (r.logits, r.experts) for b, r in routings.items()}

    def run_routed(params, images, logits):
        return apply_with_logits(module, params, images, logits)[0]

    return (
        jax.jit(jax.vmap(run, in_axes=(0, None))),
        jax.jit(jax.vmap(run_routed, in_axes=(0, None, 0))),
    )


class _Model:
    """The members as two functions: with their own routing, and with given logits."""

    def __init__(self, task: Task, params: Any):
        self._params = params
        self._run, self._run_routed = _compiled_model(task)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
        """Returns logits (M, N, classes), and by block router logits and experts (M, N, T, ·)."""
        logits, routings = self._run(self._params, images)
        by_image = {
            block: [x.reshape(len(x), len(images), -1, x.shape[-1]) for x in parts]
            for block, parts in routings.items()
        }
        return (
            logits,
            {b: x for b, (x, _) in by_image.items()},
            {b: x for b, (_, x) in by_image.items()},
        )

    def routed(self, images: jax.Array, router_logits: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the logits where the routers answer with `router_logits`, (M, N, T, E)."""
        return self._run_routed(self._params, images, router_logits)


def _sums(task: Task, model: _Model, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
    source = images.astype(jnp.float32) / 127.5 - 1
    keys = jax.random.split(key, 3)
    whole, _, experts = model(_rgb(source))
    members = len(whole)
    scalars = {"images": jnp.full(members, len(images), jnp.float32)} | _scores("", whole, labels)
    loads = {b: _load(e, task.num_experts) for b, e in experts.items()}
    noise: dict[float, dict[str, dict[str, jax.Array]]] = {level: {} for level in NOISE_LEVELS}
    for level in NOISE_LEVELS:
        grain = 2 * level * jax.random.normal(keys[1], source.shape)
        _, _, noisy = model(_rgb(jnp.clip(source + grain, -1, 1)))
        for block in experts:
            both = jnp.stack([experts[block][..., 0], noisy[block][..., 0]], axis=2)
            tokens = jnp.arange(both.shape[-1])
            same = jnp.broadcast_to(tokens[:, None], (len(images), len(tokens), 2))
            noise[level][block] = _pair_sums(both, same, task.num_experts)
    views, matrices = _views(key=keys[0], images=source, task=task)
    both, logits, experts = model(views.reshape(-1, *views.shape[2:]))
    predictions = jnp.argmax(both, -1).reshape(members, -1, 2)
    scalars["crop_accuracy"] = jnp.mean(predictions == labels[:, None], axis=-1).sum(-1)
    scalars["same_label"] = jnp.sum(predictions[..., 0] == predictions[..., 1], axis=-1)
    pairs = _match(task, matrices)
    counts = {
        block: _pair_sums(
            e[..., 0].reshape(members, len(images), 2, -1), pairs[:, :-1], task.num_experts
        )
        for block, e in experts.items()
    }
    noisy = views[:, 0] + 2 * NOISE * jax.random.normal(
        keys[1], (*views.shape[:1], *views.shape[2:4], 1)
    )
    _, noisy_logits, _ = model(jnp.clip(noisy, -1, 1))
    own = {b: x.reshape(members, len(images), 2, *x.shape[2:]) for b, x in logits.items()}
    for name in ROUTINGS:
        routes = {
            block: _route(name, x, pairs, noisy_logits[block], keys[2], task.k)
            for block, x in own.items()
        }
        scalars |= _scores(f"/{name}", model.routed(views[:, 0], routes), labels)
    return {"scalars": scalars, "loads": loads, "counts": counts, "noise": noise}


def _rgb(images: jax.Array) -> jax.Array:
    return jnp.repeat(images[..., None], 3, axis=-1)


@functools.partial(jax.jit, static_argnames="task")
def _views(key: jax.Array, images: jax.Array, task: Task) -> tuple[Array, Array]:
    return device_two_views(key, images, task.smallest_area, task.side)


@functools.partial(jax.jit, static_argnums=0)
def _match(task: Task, view_from_image: Array) -> Array:
    return match_patches(
        view1_from_view0(view_from_image), task.side, task.patch_size, pair_class_tokens=True
    )


@functools.partial(jax.jit, static_argnums=1)
def _load(experts: jax.Array, num_experts: int) -> jax.Array:
    return jnp.sum(jax.nn.one_hot(experts, num_experts), axis=(1, 2, 3))


def _scores(suffix: str, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    return {f"accuracy{suffix}": jnp.sum(correct, -1), f"nll{suffix}": jnp.sum(nll, -1)}


@functools.partial(jax.jit, static_argnums=(0, 5))
def _route(
    name: str, logits: jax.Array, pairs: jax.Array, noisy: jax.Array, key: jax.Array, k: int
) -> jax.Array:
    """Returns (M, B, T, E) router logits of view 0, taken from both views (M, B, 2, T, E)."""
    first = logits[:, :, 0]
    if name == "own":
        return first
    if name == "other_view":
        return jax.vmap(_from_other_view, in_axes=(0, None))(logits, pairs)
    if name == "noisy_copy":
        return noisy
    if name == "random":
        return jax.random.permutation(key, first, axis=-1, independent=True)
    if name == "next_best":
        return _next_best(first, k)
    return jnp.zeros_like(first)  # one expert: the first of equals


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


@functools.partial(jax.jit, static_argnums=2)
def _pair_sums(first: jax.Array, pairs: jax.Array, num_experts: int) -> dict[str, jax.Array]:
    """Sums over images of `decomposition_sums`; first (M, B, 2, T), pairs (B, X, 2)."""
    index = jnp.broadcast_to(jnp.maximum(pairs, 0), (len(first), *pairs.shape))
    a, b = (
        jnp.take_along_axis(first[:, :, v], index[..., v], axis=2)[..., None] for v in (0, 1)
    )  # (M, B, X, 1)
    matched = pairs[..., 0] >= 0
    per_image = jax.vmap(lambda a, b: decomposition_sums(a, b, matched, num_experts))(a, b)
    return jax.tree.map(lambda x: jnp.sum(x, axis=1), per_image)


def _finish(total: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turns sums into metrics, each (M,)."""
    scalars = dict(total["scalars"])
    images = scalars.pop("images")
    result = {name: value / images for name, value in scalars.items()}
    for block, sums in total["counts"].items():
        result |= _parts(f"{block}/", decompose(sums))
    result |= _parts("", average([decompose(sums) for sums in total["counts"].values()]))
    for level in NOISE_LEVELS:
        blocks = [decompose(sums) for sums in total["noise"][level].values()]
        result |= _parts(f"noise_{level:g}/", average(blocks))
    shares = np.stack([load / load.sum(-1, keepdims=True) for load in total["loads"].values()])
    entropy = -np.sum(np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-30)), 0), axis=-1)
    return result | {"use": np.mean(np.exp(entropy) / shares.shape[-1], axis=0)}


def _parts(prefix: str, parts: Decomposition) -> dict[str, np.ndarray]:
    named = {"top1": parts.chance + parts.image + parts.place, **parts._asdict()}
    return {f"{prefix}{name}": value for name, value in named.items()}
