"""One pass of a model over images, with the choices of its routers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Leaf
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models import apply_model
from vmoe_prc.models.routing import DEFAULT_ROUTER
from vmoe_prc.steps.views import by_image


@flax.struct.dataclass
class Choices:
    """The choices of a router for the tokens of N images, without noise.

    Attributes:
      experts: (N, T, K) int32, best first.
      gates: (N, T, K) float32, the probabilities of these experts.
      kept: (N, T, K) bool, False where the expert had no room.
      selected: (N, T, K) bool, whether the router selected the expert, with room or without:
        always True, except with Expert Choice (K = E), where it equals `kept`, and for choices
        of weight 0.
      entropy: (N, T) float32, entropy of the gates over all experts, in nats.
    """

    experts: Leaf
    gates: Leaf
    kept: Leaf
    selected: Leaf
    entropy: Leaf


RoutingStep = Callable[[Any, Float[Array, "N H W C"]], tuple[Array, dict[str, Choices]]]


def make_routing_step(model: nn.Module) -> RoutingStep:
    """Builds the function (params, images) -> (logits, choices by block) to be jitted.

    Args:
      model: The model, with `deterministic=True`.

    Returns:
      A function of parameters and (N, H, W, C) images, to (N, classes) logits and the
      `Choices` of each block.
    """
    router = dict(model.encoder).get("moe", {}).get("router", {})
    experts_choose = ROUTERS[router.get("name", DEFAULT_ROUTER)].experts_choose

    def step(params: Any, images: Array) -> tuple[Array, dict[str, Choices]]:
        logits, routings = apply_model(model, params, images)
        choices = {}
        for block, routing in routings.items():
            kept = by_image(routing.kept, len(images))
            gates = by_image(routing.gates, len(images))  # (N, T, E)
            experts = by_image(routing.experts, len(images))
            choices[block] = Choices(
                experts=experts,
                gates=jnp.take_along_axis(gates, experts, axis=-1),
                kept=kept,
                selected=kept if experts_choose else by_image(routing.selected, len(images)),
                entropy=-jnp.sum(jax.scipy.special.xlogy(gates, gates), axis=-1),
            )
        return logits, choices

    return step
