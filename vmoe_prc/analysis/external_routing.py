"""Runs a model with router logits from outside, such as those of another view."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vmoe_prc.arrays import Array, Float
from vmoe_prc.models.routing import Routing


def apply_with_logits(
    model: nn.Module,
    params: Any,
    images: Float[Array, "N H W C"],
    logits: Mapping[str, Float[Array, "N T E"]],
) -> tuple[jax.Array, dict[str, Routing]]:
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
      ValueError: If a block of `logits` has no router whose logits a layer `dense` makes.
    """
    replaced = set()

    def replace(next_function, args, kwargs, context):
        path = context.module.scope.path  # ("Encoder", block, "Moe", "Router", "dense")
        if context.module.name == "dense" and len(path) > 3 and path[-2] == "Router":
            block = path[-4]
            if block in logits:
                replaced.add(block)
                groups = args[0].shape[:-1]  # (G, S)
                return jax.lax.stop_gradient(logits[block].reshape(*groups, -1))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(replace):
        outputs, routings = model.apply({"params": params}, images)
    if missing := logits.keys() - replaced:
        raise ValueError(f"no router to replace in {', '.join(sorted(missing))}")
    return outputs, routings
