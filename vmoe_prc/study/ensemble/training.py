"""Training of an ensemble: one jitted program for all members."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmoe_prc.alignment import match_patches, view1_from_view0
from vmoe_prc.data.device_views import device_two_views, photometric_change
from vmoe_prc.models import apply_model, create_model
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.recipes import adam, small_model
from vmoe_prc.study.ensemble.members import TERMS, Variant, router_terms


@dataclasses.dataclass(frozen=True)
class Task:
    """The part of an ensemble that all members share.

    Attributes:
      side: Side of the images and of their views in pixels.
      patch_size: Side of a patch in pixels.
      num_classes: Number of classes.
      k: Selected experts of a token.
      num_experts: Number of experts.
      moe_layers: Blocks with experts; the last is the last block.
      split_rngs: Whether the experts start with different parameters.
      hidden_size: Width D; the MLPs are twice as wide.
      smallest_area: Smallest area of a crop as a fraction of the image.
      pairs: Pairs of views in a step.
      steps: Steps of training.
      peak_value: Learning rate after the warm-up, a tenth of the steps.
      ema_decay: Decay of the average of the parameters, which is evaluated.
      dispatcher: "gather", a slot for every token in every expert, which vmap merges for many
        members; or "dropless", which computes the selected experts only and is twice as fast for
        one member on a CPU. Neither drops a token: they are equal up to rounding.
    """

    side: int = 40
    patch_size: int = 8
    num_classes: int = 10
    k: int = 1
    num_experts: int = 8
    moe_layers: tuple[int, ...] = (0, 1, 2, 3)
    split_rngs: bool = True
    hidden_size: int = 64
    smallest_area: float = 0.6
    pairs: int = 32
    steps: int = 8_000
    peak_value: float = 4e-3
    ema_decay: float = 0.999
    dispatcher: Literal["gather", "dropless"] = "gather"

    def model(self, deterministic: bool) -> nn.Module:
        """Returns the model, which drops no token at any batch."""
        options = small_model(
            self.num_classes,
            self.side,
            self.patch_size,
            experts=self.num_experts,
            k=self.k,
            layers=self.moe_layers,
        )
        options |= {"name": "VisionTransformerMoe", "hidden_size": self.hidden_size}
        options["encoder"]["mlp_dim"] = 2 * self.hidden_size
        options["encoder"]["moe"]["split_rngs"] = self.split_rngs
        dispatcher: dict[str, Any] = {"name": self.dispatcher}
        if self.dispatcher == "gather":
            dispatcher["capacity_factor"] = self.num_experts / self.k
        options["encoder"]["moe"]["router"]["dispatcher"] = dispatcher
        return create_model(options, deterministic=deterministic)

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimiser of the small recipes."""
        schedule = adam("warmup_cosine_decay", self.peak_value, 1e-5, max(self.steps // 10, 1))
        return create_optimizer(total_steps=self.steps, **schedule)


class Members(NamedTuple):
    """The options that differ between members; a leading axis M when they are stacked.

    Attributes:
      weights: (len(terms),) float32.
      photometric: bool scalar.
      seed: int32 scalar.
    """

    weights: jax.Array
    photometric: jax.Array
    seed: jax.Array


class State(NamedTuple):
    """Training state of a member: parameters, state of the optimiser, averaged parameters."""

    params: Any
    opt_state: Any
    ema_params: Any


def stack_members(runs: Sequence[tuple[Variant, int]], terms: Sequence[str] = TERMS) -> Members:
    """Stacks variants with their seeds; each has the weights of `terms`."""
    return Members(
        jnp.stack([variant.vector(terms) for variant, _ in runs]),
        jnp.asarray([variant.photometric for variant, _ in runs]),
        jnp.asarray([seed for _, seed in runs], jnp.int32),
    )


def make_training(
    task: Task,
    images: np.ndarray,
    labels: np.ndarray,
    chunk: int = 100,
    terms: Sequence[str] = TERMS,
) -> tuple[Callable[[Members], State], Callable[..., tuple[State, dict[str, jax.Array]]]]:
    """Builds the functions that create and advance all members.

    Members of the same seed have the same initial parameters, images, crops and noise.

    Args:
      task: The task.
      images: (N, side, side) uint8 training images.
      labels: (N,) classes.
      chunk: Steps of one call of `advance`.
      terms: Losses on the routers that are computed, in the order of the members' weights.

    Returns:
      `create(members)`, the initial states, and `advance(members, state, step)`, the states
      after `chunk` more steps and the means of the metrics over them, both jitted and with a
      leading axis M. The states are donated.
    """
    create, advance = _compiled_training(task, chunk, tuple(terms))
    data = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    return create, lambda members, state, step: advance(members, state, step, *data)


@functools.cache
def _compiled_training(
    task: Task, chunk: int, terms: tuple[str, ...]
) -> tuple[Callable[..., State], Callable[..., tuple[State, dict[str, jax.Array]]]]:
    """Builds `make_training`'s functions, where `advance` takes the data, too; compiled once."""
    model, optimizer = task.model(deterministic=False), task.optimizer()

    def create(member: Members) -> State:
        key = jax.random.key(member.seed)
        rngs = {"params": key, "gating": key, "dropout": key}
        params = model.init(rngs, jnp.zeros((2 * task.pairs, task.side, task.side, 3)))["params"]
        return State(params, optimizer.init(params), params)

    def objective(params, member: Members, key, pixels, targets):
        keys = jax.random.split(key, 5)
        chosen = jax.random.randint(keys[0], (task.pairs,), 0, len(pixels))
        source = pixels[chosen].astype(jnp.float32) / 127.5 - 1
        views, matrices = device_two_views(keys[1], source, task.smallest_area, task.side)
        views = jnp.where(member.photometric, photometric_change(keys[2], views), views)
        logits, routings = apply_model(
            model,
            params,
            views.reshape(-1, *views.shape[2:]),
            rngs={"gating": keys[3], "dropout": keys[3]},
        )
        pairs = match_patches(
            view1_from_view0(matrices), task.side, task.patch_size, pair_class_tokens=True
        )
        values = sum(router_terms(routing, pairs, keys[4], terms) for routing in routings.values())
        classes = jnp.repeat(targets[chosen], 2)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes))
        accuracy = jnp.mean(jnp.argmax(logits, -1) == classes)
        return loss + jnp.dot(member.weights, values), {"loss": loss, "accuracy": accuracy}

    def advance(member: Members, state: State, step, pixels, targets):
        root = jax.random.fold_in(jax.random.key(member.seed), 1)

        def one_step(state: State, step):
            key = jax.random.fold_in(root, step)
            grads, metrics = jax.grad(objective, has_aux=True)(
                state.params, member, key, pixels, targets
            )
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = optax.incremental_update(params, state.ema_params, 1 - task.ema_decay)
            return State(params, opt_state, ema), metrics

        state, metrics = jax.lax.scan(one_step, state, step + jnp.arange(chunk))
        return state, jax.tree.map(jnp.mean, metrics)

    axes = (0, 0, None, None, None)
    return jax.jit(jax.vmap(create)), jax.jit(jax.vmap(advance, in_axes=axes), donate_argnums=1)
