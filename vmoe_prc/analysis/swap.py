"""Worth of routing: the accuracy of a model whose tokens are routed differently.

The routing of all blocks is exchanged at once, on the same images. `D_random` is the accuracy
that random experts cost: near 0, the experts are interchangeable, and no study of this model
can show an effect of routing. `D_view` is the accuracy that routing by the other view costs:
what perfectly consistent routing could win back at evaluation. The oracle gain is the accuracy
that noisy images win with the routing of the clean images. After the swap tests of Puigcerver
et al. (arXiv 2210.10253, from its abstract).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from vmoe_prc.alignment import shuffle_partners
from vmoe_prc.analysis.external_routing import apply_with_logits
from vmoe_prc.analysis.opened_run import OpenedRun, ValueRange
from vmoe_prc.analysis.perturbations import gaussian_noise
from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.config import ConfigError
from vmoe_prc.evaluation.bootstrap import Interval
from vmoe_prc.evaluation.paired_intervals import mean_difference, share_difference
from vmoe_prc.models import Routing, apply_model
from vmoe_prc.models.flops import routed_share
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import is_correct, is_labelled
from vmoe_prc.steps.views import by_image, match_views

NOISE = 0.3
# Routings of the clean images, and routings of the noisy ones.
CLEAN = {
    "own": "the model's own",
    "other_view": "of the matched patches of the other view",
    "shuffled": "of other matched patches of the same image, at random",
    "noisy": "of a noisy copy of the image",
    "next_best": "the expert after the last chosen one in its place",
    "random": "random experts, with the token's own gates",
    "one_expert": "the same expert for all tokens, with the token's own gates",
}
NOISY = {"own": "the model's own", "clean": "of the clean image (oracle)"}
_NEED_TWO_VIEWS = ("other_view", "shuffled")

Logits = dict[str, Float[Array, "N T E"]]


class SwapResult(NamedTuple):
    """Tables of the swap test.

    Attributes:
      routings: One row per image kind (`clean`, `noisy`) and routing: `accuracy` in [0, 1] and
        `nll`, negative log-likelihood in nats; `accuracy_change` and `nll_change` from the
        model's own routing, with the bounds of their 95% intervals (`accuracy_change_low`, ...).
      gains: One row per measure (`D_random`, `D_view`, `oracle_gain`): `value`, a difference of
        accuracy, and its 95% interval `low`, `high`. Above them `routed_flops`, the share of the
        operations that routing decides on.

    Intervals are paired by image, see `evaluation.paired_intervals`.
    """

    routings: pd.DataFrame
    gains: pd.DataFrame


def swap_test(
    run: OpenedRun, split: str | None = None, *, noise: float = NOISE, seed: int = 0
) -> SwapResult:
    """Measures accuracy and likelihood of images with labels under exchanged routings; dropless.

    Args:
      run: The opened run.
      split: Name of a split; by default one with two views, whose first view is classified.
        With one view there is no routing by another view.
      noise: Standard deviation of the noise, with a pixel range of 1.
      seed: Seed of everything random.

    Raises:
      ConfigError: If there is no such split, it has no image with a label, or the model has no
        MoE blocks.
    """
    run.choose_blocks()
    split = split or _default_split(run)
    split = run.choose_split(split)
    make = functools.partial(_scores, run.dropless().model, run.value_range(split), noise)
    step = jax.jit(make, out_shardings=replicated(run.mesh))
    parts = []
    with jax.set_mesh(run.mesh):
        for index, batch in enumerate(run.batches(split)):
            key = jax.random.fold_in(jax.random.key(seed), index)
            scores, mask = jax.device_get(step(run.params, batch, key))
            parts.append({name: values[mask] for name, values in scores.items()})
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(scores["clean/own/accuracy"]):
        raise ConfigError("--split", split, "none of its images has a label")
    height, width = run.batch_spec(split)["image"].shape[-3:-1]
    share = routed_share(run.config.model, (height, width))
    return SwapResult(_routings(scores), _gains(scores, share))


def swap_routings(
    logits: Float[Array, "N T E"], num_selected: int, key: jax.Array
) -> dict[str, Float[Array, "N T E"]]:
    """Exchanges the experts of each token and keeps its gates.

    Args:
      logits: (N, T, E) logits of a router.
      num_selected: K.
      key: Random key.

    Returns:
      Logits with the same values per token in another order: `random`, permuted at random;
      `next_best`, rank K exchanged with rank K + 1, where K < E; `one_expert`, in descending
      order for all tokens.
    """
    descending = jnp.sort(logits, axis=-1, descending=True)
    swapped: dict[str, Array] = {
        "random": jax.random.permutation(key, logits, axis=-1, independent=True),
        "one_expert": descending,
    }
    if num_selected < logits.shape[-1]:
        order = jnp.argsort(-logits, axis=-1)
        last, following = order[..., num_selected - 1], order[..., num_selected]
        exchange = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
        exchange = jnp.where(exchange == last[..., None], -1, exchange)
        exchange = jnp.where(exchange == following[..., None], last[..., None], exchange)
        exchange = jnp.where(exchange == -1, following[..., None], exchange)
        swapped["next_best"] = jnp.take_along_axis(logits, exchange, axis=-1)
    return swapped


def other_view_logits(
    logits: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"]
) -> Float[Array, "B T E"]:
    """Gives each token of view 0 the logits of its match; tokens without one keep their own."""
    matched = pairs[..., 0] >= 0
    theirs = jnp.take_along_axis(logits[:, 1], jnp.maximum(pairs[..., 1], 0)[..., None], axis=1)
    # Unmatched pairs are written to a row after the last token, which is cut off.
    target = jnp.where(matched, pairs[..., 0], logits.shape[2])
    padded = jnp.pad(logits[:, 0], ((0, 0), (0, 1), (0, 0)))
    rows = jnp.arange(len(logits))[:, None]
    return padded.at[rows, target].set(theirs)[:, :-1]


def _default_split(run: OpenedRun) -> str | None:
    names = [name for name in run.config.dataset if name != "train" and run.has_two_views(name)]
    return run.choose_split(None, two_views=True) if names else None


def _scores(
    model: nn.Module,
    value_range: ValueRange,
    noise: float,
    params: Any,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Scores images under all routings.

    Returns:
      (B,) hits and likelihoods, named `{images}/{routing}/{accuracy or nll}`, and (B,) bool,
      whether the image counts.
    """
    two_views = batch["image"].ndim == 5
    images = batch["image"][:, 0] if two_views else batch["image"]
    keys = jax.random.split(key, 4)
    unit = value_range.to_unit(images)
    seed = jax.random.randint(keys[0], (), 0, 2**31 - 1)
    change = gaussian_noise(unit, noise, seed) - unit
    noisy = images + value_range.size * change

    def route(images: Array) -> tuple[Array, Logits, dict[str, Routing]]:
        outputs, routings = apply_model(model, params, images)
        return outputs, {b: by_image(r.logits, len(images)) for b, r in routings.items()}, routings

    outputs, own, routings = route(images)
    noisy_outputs, noisy_own, _ = route(noisy)
    choices: dict[str, Logits] = {"noisy": noisy_own}
    for i, (block, logits) in enumerate(own.items()):
        k = min(routings[block].num_selected_experts, logits.shape[-1])
        block_key = jax.random.fold_in(keys[1], i)
        for name, values in swap_routings(logits, k, block_key).items():
            choices.setdefault(name, {})[block] = values
    if two_views:
        class_token = model.classifier == "token"
        pairs = match_views(model, batch, pair_class_tokens=class_token)
        _, second, _ = route(batch["image"][:, 1])
        both = {b: jnp.stack([own[b], second[b]], axis=1) for b in own}
        for name, partners in (
            ("other_view", pairs),
            ("shuffled", shuffle_partners(keys[2], pairs, class_token)),
        ):
            choices[name] = {b: other_view_logits(x, partners) for b, x in both.items()}
    results = {("clean", "own"): outputs, ("noisy", "own"): noisy_outputs}
    for name in CLEAN:
        if name in choices:
            results["clean", name], _ = apply_with_logits(model, params, images, choices[name])
    results["noisy", "clean"], _ = apply_with_logits(model, params, noisy, own)
    labels = batch["labels"].argmax(-1)
    scores = {}
    for (kind, routing), logits in results.items():
        likelihood = jax.nn.log_softmax(logits.astype(jnp.float32))
        nll = -jnp.take_along_axis(likelihood, labels[:, None], axis=1)[:, 0]
        right = is_correct(logits, batch["labels"])
        scores[f"{kind}/{routing}/accuracy"] = right.astype(jnp.float32)
        scores[f"{kind}/{routing}/nll"] = nll
    return scores, batch["mask"] & is_labelled(batch["labels"])


def _routings(scores: Mapping[str, Float[np.ndarray, " N"]]) -> pd.DataFrame:
    rows = []
    for kind, names in (("clean", CLEAN), ("noisy", NOISY)):
        for routing in names:
            if f"{kind}/{routing}/nll" not in scores:
                continue
            row: dict[str, str | float] = {"images": kind, "routing": routing}
            for metric in ("accuracy", "nll"):
                values, own = (scores[f"{kind}/{r}/{metric}"] for r in (routing, "own"))
                row[metric] = values.mean(dtype=np.float64)
                # A routing differs from itself by exactly 0.
                same = routing == "own"
                change = Interval(0.0, 0.0, 0.0) if same else _difference(metric, values, own)
                row[f"{metric}_change"] = change.value
                row |= {f"{metric}_change_low": change.low, f"{metric}_change_high": change.high}
            rows.append(row)
    return pd.DataFrame(rows)


def _gains(scores: Mapping[str, Float[np.ndarray, " N"]], share: float) -> pd.DataFrame:
    rows = [{"measure": "routed_flops", "value": share, "low": np.nan, "high": np.nan}]
    for measure, better, worse in (
        ("D_random", "clean/own", "clean/random"),
        ("D_view", "clean/own", "clean/other_view"),
        ("oracle_gain", "noisy/clean", "noisy/own"),
    ):
        if f"{worse}/accuracy" in scores:
            pair = (scores[f"{better}/accuracy"], scores[f"{worse}/accuracy"])
            rows.append({"measure": measure, **_difference("accuracy", *pair)._asdict()})
    return pd.DataFrame(rows)


def _difference(
    metric: str, first: Float[np.ndarray, " N"], second: Float[np.ndarray, " N"]
) -> Interval:
    """Returns the mean difference of hits or likelihoods, with its interval."""
    if metric == "accuracy":
        return share_difference(first > 0, second > 0)
    return mean_difference(first, second)
