"""The optimiser of a config: scaling, clipping, a direction, decay, learning rate, freezing.

The direction is a function of its options that registers itself in
`config.registry.OPTIMIZERS` and returns an `optax.GradientTransformation`; its options are a
subclass of `OptimizerOptions`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vmoe_prc.config import plain
from vmoe_prc.config.registry import OPTIMIZERS
from vmoe_prc.optimizer.options import ClipOptions, DecayRules, OptimizerOptions, Patterns
from vmoe_prc.runtime.trees import map_named, named_leaves
from vmoe_prc.schedule import create_learning_rate_schedule

__all__ = ["ClipOptions", "OptimizerOptions", "create_optimizer", "parameter_names"]


def create_optimizer(
    *, name: str, total_steps: int, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Creates the optimiser.

    The decay is added to the direction of the update before the learning rate scales
    it, so it is decoupled from Adam's moments (Loshchilov and Hutter, AdamW).

    Args:
      name: Name of the optimiser, such as 'adam' or 'sgd'.
      total_steps: Steps of the whole training.
      **options: Options of the optimiser: the fields of `OptimizerOptions`, where
        `learning_rate` may also be a constant, and the fields that only this optimiser has.

    Returns:
      The optimiser, whose `update` takes the norm of the gradients as `grad_norm`, if it is known.

    Raises:
      ValueError: If a name is unknown, or options contradict each other.
      TypeError: If an option is unknown, or a required one is missing.
    """
    direction, options_class = OPTIMIZERS[name], OPTIMIZERS.options(name)
    values = plain(options)
    clip = values.pop("gradient_clip", None) or {}
    clip = clip if isinstance(clip, ClipOptions) else ClipOptions(**clip)
    chosen: OptimizerOptions = options_class(**values, gradient_clip=clip)
    rate = chosen.learning_rate
    if isinstance(rate, (int, float)):
        rate = {"schedule": "constant", "value": rate}
    schedule = create_learning_rate_schedule(total_steps=total_steps, **rate)
    return optax.chain(
        *_scale(chosen.gradient_scale, chosen.gradient_clip),
        direction(chosen),
        _decay(chosen.weight_decay),
        optax.scale_by_learning_rate(schedule),
        _freeze(chosen.frozen_pattern, chosen.trainable_pattern),
    )


def parameter_names(params: Any) -> list[str]:
    """Returns names such as `Encoder/encoderblock_0/Mlp/Dense_0/kernel`, in tree order."""
    return list(named_leaves(params))


def _scale(rules: DecayRules | None, clip: ClipOptions) -> tuple[optax.GradientTransformation, ...]:
    """Scales gradients by the first rule that is found in their names, and clips them."""
    if not rules:
        return (_clip(clip),)
    compiled = [(re.compile(regex), factor) for regex, factor in rules]

    def scaled(name, gradient):
        return next((gradient * f for regex, f in compiled if regex.search(name)), gradient)

    def update(updates, state, params=None):
        del params
        return map_named(scaled, updates), state

    # The norm of the gradients that is known is that before scaling.
    clipped = optax.clip_by_global_norm(clip.global_norm) if clip.global_norm else _clip(clip)
    return optax.GradientTransformation(optax.init_empty_state, update), clipped


def _clip(options: ClipOptions) -> optax.GradientTransformation:
    if options.global_norm:
        return _clip_by_global_norm(options.global_norm)
    return optax.clip(options.absolute_value) if options.absolute_value else optax.identity()


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Like `optax.clip_by_global_norm`, in one pass over the gradients if their norm is known."""

    def update(updates, state, params=None, *, grad_norm=None, **_):
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decay(weight_decay: float | DecayRules | None) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.identity()
    if isinstance(weight_decay, (int, float)):
        weight_decay = [("", weight_decay)]
    rules = [(re.compile(regex), factor) for regex, factor in weight_decay]

    def follows(i):
        def first_match(name, _):
            return next((j for j, (r, _) in enumerate(rules) if r.search(name)), None) == i

        return lambda params: map_named(first_match, params)

    return optax.chain(
        *(optax.add_decayed_weights(f, mask=follows(i)) for i, (_, f) in enumerate(rules))
    )


def _freeze(frozen: Patterns | None, trainable: Patterns | None) -> optax.GradientTransformation:
    if not frozen and not trainable:
        return optax.identity()
    patterns = frozen or trainable or ()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    regex = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

    def is_frozen(name, _):
        return bool(regex.search(name)) == bool(frozen)

    return optax.masked(optax.set_to_zero(), lambda params: map_named(is_frozen, params))
