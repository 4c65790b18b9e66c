"""White-box attacks on the image, as in V-MoE's adversarial study (arXiv 2210.10253)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Scalar
from vmoe_prc.losses import classification_loss

Attack = Callable[[Any, Float[Array, "N H W C"], Float[Array, "N L"], Scalar], jax.Array]
PGD_STEPS = 10
# In 1/255 of the pixel range.
EPSILONS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def make_attack(model: nn.Module, loss: dict[str, Any], num_steps: int) -> Attack:
    """Builds the function (params, images, labels, epsilon) -> images to be jitted.

    Climbs the loss by the sign of its gradient and stays within `epsilon` / 255 of each
    pixel, the range of pixel values being 1. One step is FGSM (Goodfellow et al., arXiv
    1412.6572), several are PGD (Madry et al., arXiv 1706.06083) from the image itself with
    steps of 2.5 * epsilon / `num_steps`. Routing is followed as it is: the choice of
    experts has no gradient, the gates have.

    Args:
      model: The model, with `deterministic=True`.
      loss: Options of `losses.classification_loss`.
      num_steps: Steps of the ascent.
    """

    def objective(images, params, labels):
        logits, _ = model.apply({"params": params}, images)
        return jnp.sum(classification_loss(logits, labels, **loss))

    def attack(params, images, labels, epsilon):
        radius = 2 * epsilon / 255  # images span [-1, 1]
        size = radius if num_steps == 1 else 2.5 * radius / num_steps

        def climb(_, attacked):
            gradient = jax.grad(objective)(attacked, params, labels)
            attacked = attacked + size * jnp.sign(gradient)
            return jnp.clip(jnp.clip(attacked, images - radius, images + radius), -1, 1)

        return jax.lax.fori_loop(0, num_steps, climb, images)

    return attack
