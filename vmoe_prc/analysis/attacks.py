"""White-box attacks on the image, as in V-MoE's adversarial study (arXiv 2210.10253)."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.analysis.external_routing import apply_with_logits
from vmoe_prc.arrays import Array, Float, Scalar
from vmoe_prc.losses import classification_loss
from vmoe_prc.models import apply_model
from vmoe_prc.steps import adversarial
from vmoe_prc.steps.views import by_image

Attack = Callable[[Any, Float[Array, "N H W C"], Float[Array, "N L"], Scalar], Array]
Target = Literal["model", "router", "experts"]
PGD_STEPS = 10
# Those of V-MoE's study.
VMOE_STEPS = 40
# In 1/255 of the pixel range.
EPSILONS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def make_attack(
    model: nn.Module,
    loss: dict[str, Any],
    num_steps: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    target: Target = "model",
    projected: bool = True,
) -> Attack:
    """Builds the function (params, images, labels, epsilon) -> images to be jitted.

    Ascends an objective by the sign of its gradient, within `epsilon` / 255 of each pixel
    (in units of the pixel range). One step is FGSM (Goodfellow et al., arXiv 1412.6572),
    several are PGD (Madry et al., arXiv 1706.06083) from the image itself with steps of
    2.5 * epsilon / `num_steps`.

    The objective is, by target:
      model: the classification loss. The gates have a gradient, the choice of experts has
        none.
      experts: the classification loss with the routing of the unperturbed image.
      router: cross-entropy of the gates to the first choices of the unperturbed image,
        averaged over tokens and summed over blocks: drives tokens to other experts, regardless
        of the class.
    The latter two separate the robustness of routers and experts, as Zhang et al. do (arXiv
    2502.06832; inferred from its abstract).

    Args:
      model: The model, with `deterministic=True`.
      loss: Options of `losses.classification_loss`.
      num_steps: Steps of the ascent.
      value_range: Pixel values of black and white.
      target: The part of the model to attack.
      projected: Whether images stay within `epsilon` and the range of pixels. If not, the steps
        are V-MoE's, epsilon / `num_steps`, see `steps.adversarial`.
    """
    low, high = value_range

    def attack(params, images, labels, epsilon):
        radius = (high - low) * epsilon / 255
        if not projected:
            objective = make_objective(params, images, labels)
            return adversarial.attack(
                lambda images, keys: objective(images),
                images,
                {},
                max_epsilon=radius,
                num_updates=num_steps,
            )
        size = radius if num_steps == 1 else 2.5 * radius / num_steps
        objective = make_objective(params, images, labels)

        def step(_, attacked):
            attacked = attacked + size * jnp.sign(jax.grad(objective)(attacked))
            return jnp.clip(jnp.clip(attacked, images - radius, images + radius), low, high)

        return jax.lax.fori_loop(0, num_steps, step, images)

    def make_objective(params, images, labels):
        def classification(attacked):
            logits, _ = apply_model(model, params, attacked)
            return jnp.sum(classification_loss(logits, labels, **loss))

        if target == "model":
            return classification
        _, clean = apply_model(model, params, images)
        if target == "experts":
            fixed = {block: by_image(r.logits, len(images)) for block, r in clean.items()}

            def with_fixed_routing(attacked):
                logits, _ = apply_with_logits(model, params, attacked, fixed)
                return jnp.sum(classification_loss(logits, labels, **loss))

            return with_fixed_routing

        def rerouting(attacked):
            _, routings = apply_model(model, params, attacked)
            total = jnp.float32(0.0)
            for block, routing in routings.items():
                logs = jax.nn.log_softmax(routing.logits)
                first = clean[block].gates.argmax(-1)[..., None]
                total -= jnp.mean(jnp.take_along_axis(logs, first, axis=-1))
            return total

        return rerouting

    return attack
