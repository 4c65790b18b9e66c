"""One step of training, as a pure function to be jitted."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vmoe_prc.alignment import shuffle_partners
from vmoe_prc.arrays import Array, Int
from vmoe_prc.config.metric_names import MetricName
from vmoe_prc.losses import (
    BalanceLosses,
    ConsistencyLoss,
    auxiliary_loss,
    classification_loss,
)
from vmoe_prc.losses.consistency import ConsistencyOptions
from vmoe_prc.models import apply_model
from vmoe_prc.models.float32_gradients import float32_gradients
from vmoe_prc.models.routing import Routing
from vmoe_prc.models.routing.bias import BIAS
from vmoe_prc.runtime.mesh import split_further
from vmoe_prc.runtime.trees import map_named, named_leaves
from vmoe_prc.steps.accuracy import accuracy
from vmoe_prc.steps.adversarial import attack
from vmoe_prc.steps.mixup import mixup
from vmoe_prc.steps.state import TrainState, step_keys
from vmoe_prc.steps.views import Batch, Metrics, match_views, merge_views

# (params, batch, step) -> (gradients, metrics)
Gradients = Callable[[Any, Batch, jax.Array], tuple[Any, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_gradients(
    model: nn.Module,
    *,
    loss: Mapping[str, Any],
    balance: Mapping[str, Any] | None = None,
    consistency: Mapping[str, Any] | ConsistencyLoss | None = None,
    mixup_options: Mapping[str, Any] | None = None,
    adversarial: Mapping[str, Any] | None = None,
    microsteps: int = 1,
    gradient_dtype: str = "float32",
    seed: int = 0,
    total_steps: int | None = None,
) -> Gradients:
    """Builds the function (params, batch, step) -> (gradients, metrics) of one step.

    A batch has `image` (B, H, W, 3) or, for two views, (B, 2, H, W, 3), `labels`
    (B, classes), and for two views `view_from_image` (B, 2, 3, 3). Metrics are float32
    scalars over the whole batch, on any number of devices. `step` counts the steps
    before this one; the randomness is a function of it and of the seed.

    Args:
      model: The model, with `deterministic=False`.
      loss: Options of `losses.classification_loss`.
      balance: Options of the balance losses, see `losses.auxiliary_loss`.
      consistency: `name` and options of the consistency loss, see `losses.consistency`; None
        for no such loss.
      mixup_options: Options of `mixup.mixup`; None for no mixup.
      adversarial: Options of `adversarial.attack`, and `attack_auxiliary_loss`, whether balance
        losses are attacked, too; None for images as they are.
      microsteps: Parts of the batch whose gradients are averaged one after the other, to
        save memory. The consistency loss is then computed for each part.
      gradient_dtype: 'float32', or 'bfloat16' for the dtype of the layers: in which dtype a layer
        in bfloat16 computes the gradients of its parameters, and they are summed over devices.
      seed: Seed of dropout, routing noise and mixup.
      total_steps: Steps of the training, for losses that are for its first part; all losses count
        in all steps if None.
    """
    balance_losses = BalanceLosses.create(balance)
    consistency_loss = ConsistencyLoss.create(consistency)

    def attacked(params, images, labels, keys, progress):
        options = dict(adversarial or {})
        both = options.pop("attack_auxiliary_loss", False)
        params = jax.lax.stop_gradient(params)

        def increased(images, keys):
            logits, routings = apply_model(model, params, images, rngs=keys)
            total = _mean_loss(logits, labels, loss)
            if not both:
                return total
            balance = {"balance": balance_losses, "progress": progress}
            return total + auxiliary_loss(routings, **balance)[0]

        return attack(increased, images, keys, **options)

    def objective(params, batch, keys, progress):
        images, labels = merge_views(batch["image"], batch["labels"])
        if mixup_options:
            images, labels = mixup(keys["mixup"], images, labels, **mixup_options)
        if adversarial:
            images = attacked(params, images, labels, keys, progress)
        logits, routings = apply_model(model, params, images, rngs=keys)
        pairs = None
        if consistency_loss is not None:
            pairs = _pairs(model, batch, consistency_loss.options, keys["pairs"])
        main = _mean_loss(logits, labels, loss)
        auxiliary, metrics = auxiliary_loss(
            routings,
            balance=balance_losses,
            pairs=pairs,
            consistency=consistency_loss,
            progress=progress,
        )
        metrics |= {
            "main_loss": main,
            "total_loss": main + auxiliary,
            "accuracy": accuracy(logits, _of_rows(labels, logits)),
            **_dropped_choices(routings),
        }
        return main + auxiliary, metrics

    gradients = _accumulate(jax.grad(objective, has_aux=True), microsteps)
    context = float32_gradients if gradient_dtype == "float32" else contextlib.nullcontext

    def of_step(params, batch, step):
        progress = None if total_steps is None else step / total_steps
        with context():
            return gradients(params, batch, step_keys(seed, step), progress)

    return of_step


def _mean_loss(logits: Array, labels: Array, loss: Mapping[str, Any]) -> jax.Array:
    return jnp.mean(classification_loss(logits, _of_rows(labels, logits), **loss))


def _of_rows(labels: Array, logits: Array) -> jax.Array:
    """Repeats labels for the members of an ensemble, which have a row of logits each."""
    return jnp.repeat(labels, len(logits) // len(labels), axis=0)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None = None,
    max_skipped_steps: int = 10,
    place: Callable[[Any], Any] = lambda tree: tree,
    **options: Any,
) -> TrainStep:
    """Builds the function (state, batch) -> (state, metrics) of one update.

    Where the loss, the norm of the gradients or the norm of the updated parameters is not
    finite, only the counters change: parameters, their average and the state of the optimiser,
    with its learning rate, stay as they were. After `max_skipped_steps` such steps in a row
    nothing changes any more, not even the step, so that a loop which looks later finds the
    state of that step.

    Args:
      model: The model, with `deterministic=False`.
      optimizer: The optimiser.
      ema_decay: Decay of the average of the parameters; None for no average.
      max_skipped_steps: Steps in a row without an update after which the state stops.
      place: Splits gradients and parameters, trees alike, over the devices where the
        update is computed; see `placement_of_updates`.
      **options: Options of `make_gradients`, which also documents the batch.
    """
    gradients = make_gradients(model, **options)
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics = gradients(state.params, batch, state.step)
        grads, biases = _split_biases(place(grads))
        norm = optax.tree.norm(grads)
        running = state.skipped_in_a_row < max_skipped_steps
        finite = jnp.isfinite(metrics["total_loss"]) & jnp.isfinite(norm)

        def updated(state: TrainState) -> tuple[Any, Any]:
            params = place(state.params)
            updates, opt_state = optimizer.update(grads, state.opt_state, params, grad_norm=norm)
            if biases:
                updates = map_named(lambda name, x: -biases[name] if name in biases else x, updates)
            return place(optax.apply_updates(params, updates)), opt_state

        # Only this norm is kept of a first computation of the update, whose elements are
        # formed and summed in one pass; the second one replaces the old arrays in place. Without
        # the barrier the compiler would share them, and hold the old and the new state at once.
        finite &= jnp.isfinite(optax.tree.norm(updated(state)[0]))
        state, finite = jax.lax.optimization_barrier((state, finite))

        def update(state: TrainState) -> TrainState:
            params, opt_state = updated(state)
            ema_params = None
            if ema_decay is not None:
                ema_params = optax.incremental_update(params, state.ema_params, 1 - ema_decay)
            return dataclasses.replace(
                state,
                step=state.step + 1,
                params=params,
                opt_state=opt_state,
                ema_params=ema_params,
                skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
            )

        def skip(state: TrainState) -> TrainState:
            skipped = running.astype(jnp.int32)
            return dataclasses.replace(
                state,
                step=state.step + skipped,
                skipped_steps=state.skipped_steps + skipped,
                skipped_in_a_row=state.skipped_in_a_row + skipped,
            )

        with jax.named_scope("update"):
            state = _choose(running & finite, update, skip, state)
        metrics |= {
            "global_norm/grads": norm,
            "global_norm/params": optax.tree.norm(state.params),
            "skipped_steps": state.skipped_steps.astype(jnp.float32),
        }
        return state, metrics

    return train_step


def placement_of_updates(params: Any) -> Callable[[Any], Any]:
    """Splits the update over all devices, as the optimiser's state is with `shard_optimizer`.

    Each device receives the sum of its part of a gradient and updates its part of the parameters,
    which the others then gather (ZeRO, arXiv 1910.02054, stage 1).

    Args:
      params: Shapes and shardings of the parameters.
    """
    shardings = jax.tree.map(lambda x: split_further(x.shape, x.sharding), params)
    return lambda tree: jax.lax.with_sharding_constraint(tree, shardings)


def _split_biases(grads: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Takes out the gradients that are the updates themselves, see `models.routing.bias`.

    Returns:
      The gradients to optimise by, zero for biases; and the gradients of biases by name.
    """
    biases = {name: x for name, x in named_leaves(grads).items() if name.endswith(BIAS)}
    if not biases:
        return grads, {}
    return map_named(lambda name, x: jnp.zeros_like(x) if name in biases else x, grads), biases


def _pairs(
    model: nn.Module, batch: Batch, options: ConsistencyOptions, key: jax.Array
) -> Int[Array, "B X 2"]:
    """Returns the pairs of tokens that a consistency loss compares."""
    pairs = match_views(model, batch, options.pair_class_tokens)
    if options.pairs == "random":
        pairs = shuffle_partners(key, pairs, class_pair=options.pair_class_tokens)
    return pairs


def _choose(
    condition: jax.Array,
    if_true: Callable[[TrainState], TrainState],
    if_false: Callable[[TrainState], TrainState],
    state: TrainState,
) -> TrainState:
    """Like `jax.lax.cond`, but updates the state in place and never waits for the host.

    Args:
      condition: Scalar bool.
      if_true: Function of the state, without effects.
      if_false: Another one.
      state: The state, which is donated.
    """

    def branch(state):
        return jax.lax.cond(condition, if_true, if_false, state)

    def select(state):
        return jax.tree.map(
            functools.partial(jnp.where, condition), if_true(state), if_false(state)
        )

    # On a CPU, XLA copies the old arrays before a selection, but not for a branch. On a GPU a
    # branch waits until the host has read the condition, and a selection does not.
    return jax.lax.platform_dependent(state, cpu=branch, default=select)


def _dropped_choices(routings: Mapping[str, Routing]) -> Metrics:
    return {
        str(MetricName("dropped", block=block)): routing.dropped_share
        for block, routing in routings.items()
    }


def _accumulate(gradients: Callable, microsteps: int) -> Callable:
    """Makes a gradient function that averages over parts of the batch, one after the other.

    Args:
      gradients: Function (params, batch, keys, progress) -> (gradients, metrics).
      microsteps: Number of parts; each gets its own random keys.
    """
    if microsteps == 1:
        return gradients

    def averaged(params, batch, keys, progress):
        # Part i takes every `microsteps`-th row from i on: each device keeps its rows.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, microsteps, *x.shape[1:]), 0, 1), batch
        )

        def add(total, part):
            i, batch = part
            part_keys = {name: jax.random.fold_in(key, i) for name, key in keys.items()}
            return jax.tree.map(jnp.add, total, gradients(params, batch, part_keys, progress)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, first, keys, progress)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(microsteps), parts))
        return jax.tree.map(lambda x: x / microsteps, total)

    return averaged
