"""The optimiser of a config: clipping, Adam or SGD, weight decay, learning rate."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vmoe_prc.config import Config
from vmoe_prc.runtime.trees import map_named, named_leaves
from vmoe_prc.schedule import create_learning_rate_schedule

Patterns = str | Sequence[str]


def create_optimizer(
    *,
    name: str,
    total_steps: int,
    learning_rate: float | Config,
    gradient_clip: Config | None = None,
    weight_decay: float | Sequence[tuple[str, float]] | None = None,
    frozen_pattern: Patterns | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Creates the optimiser.

    The decay is added to the direction of the update before the learning rate scales
    it, so it is decoupled from Adam's moments (Loshchilov and Hutter, AdamW).

    Args:
      name: 'adam' (options `b1`, `b2`, `eps`, `mu_dtype`) or 'sgd' (options `momentum`,
        `nesterov`).
      total_steps: Steps of the whole training.
      learning_rate: A constant, or the options of a schedule.
      gradient_clip: `global_norm` or `absolute_value`.
      weight_decay: Factor for all parameters, or pairs (regex, factor) of which the
        first regex found in a parameter's name counts; no match, no decay.
      frozen_pattern: Parameters whose name holds one of these regexes stay as they are.
      **options: Options of the optimiser.

    Returns:
      The optimiser, whose `update` takes the norm of the gradients as `grad_norm`, if it is known.

    Raises:
      ValueError: If a name is unknown, or both kinds of clipping are asked for.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; allowed: {', '.join(sorted(OPTIMIZERS))}")
    if isinstance(learning_rate, (int, float)):
        learning_rate = {"schedule": "constant", "value": learning_rate}
    schedule = create_learning_rate_schedule(total_steps=total_steps, **learning_rate)
    return optax.chain(
        _clip(**(gradient_clip or {})),
        OPTIMIZERS[name](**options),
        _decay(weight_decay),
        optax.scale_by_learning_rate(schedule),
        _freeze(frozen_pattern),
    )


def parameter_names(params: Any) -> list[str]:
    """Returns names such as `Encoder/encoderblock_0/Mlp/Dense_0/kernel`, in tree order."""
    return list(named_leaves(params))


def _map_names(function: Callable[[str], Any], params: Any) -> Any:
    return map_named(lambda name, _: function(name), params)


def _sgd(momentum: float | None = None, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


def _clip(
    global_norm: float | None = None, absolute_value: float | None = None
) -> optax.GradientTransformation:
    if global_norm and absolute_value:
        raise ValueError(
            f"gradient_clip takes global_norm = {global_norm} or absolute_value = "
            f"{absolute_value}, not both"
        )
    if global_norm:
        return _clip_by_global_norm(global_norm)
    return optax.clip(absolute_value) if absolute_value else optax.identity()


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Like `optax.clip_by_global_norm`, in one pass over the gradients if their norm is known."""

    def update(updates, state, params=None, *, grad_norm=None, **_):
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decay(
    weight_decay: float | Sequence[tuple[str, float]] | None,
) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.identity()
    if isinstance(weight_decay, (int, float)):
        weight_decay = [("", weight_decay)]
    rules = [(re.compile(regex), factor) for regex, factor in weight_decay]

    def follows(i):
        def first_match(name):
            return next((j for j, (r, _) in enumerate(rules) if r.search(name)), None) == i

        return lambda params: _map_names(first_match, params)

    return optax.chain(
        *(optax.add_decayed_weights(f, mask=follows(i)) for i, (_, f) in enumerate(rules))
    )


def _freeze(patterns: Patterns | None) -> optax.GradientTransformation:
    if not patterns:
        return optax.identity()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    regex = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return optax.masked(
        optax.set_to_zero(),
        lambda params: _map_names(lambda n: bool(regex.search(n)), params),
    )


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "sgd": _sgd,
}
