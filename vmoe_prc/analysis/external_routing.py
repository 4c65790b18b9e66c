"""Runs a model with given router logits, such as the logits of another view."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vmoe_prc.arrays import Array, Float
from vmoe_prc.models import apply_model
from vmoe_prc.models.routing import NoisyRouter, Routing


def apply_with_logits(
    model: nn.Module,
    params: Any,
    images: Float[Array, "N H W C"],
    logits: Mapping[str, Float[Array, "N T E"]],
) -> tuple[Array, dict[str, Routing]]:
    """Applies a model whose routers use the given logits in place of their own.

    Gates, choices and capacity follow from these logits as usual; their gradient with respect
    to the images is 0.

    Args:
      model: The model, with `deterministic=True`.
      params: Its parameters.
      images: (N, H, W, C) images.
      logits: (N, T, E) by block, for all or some of the blocks with experts.

    Returns:
      (N, classes) logits of the head, and the routing of each block.

    Raises:
      ValueError: If a block of `logits` has no such router.
    """
    # In blocks that are computed again modules have no path, by which they are found here.
    model = model.clone(encoder={**model.encoder, "remat": "none"})
    replaced = set()

    def replace(next_function, args, kwargs, context):
        if context.method_name == NoisyRouter.final_logits.__name__:
            block = context.module.scope.path[-3]  # ("Encoder", block, "Moe", "Router")
            if block in logits:
                replaced.add(block)
                return jax.lax.stop_gradient(logits[block].reshape(args[0].shape))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(replace):
        outputs, routings = apply_model(model, params, images)
    if missing := logits.keys() - replaced:
        raise ValueError(f"no router to replace in {', '.join(sorted(missing))}")
    return outputs, routings
