"""A continuous top-k choice (SmoothSMoE, arXiv 2606.19036, from its code)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, top_experts_per_item
from vmoe_prc.models.routing.record import Routing, SoftEdge
from vmoe_prc.models.routing.router import NoisyRouter, RouterOptions
from vmoe_prc.runtime.mesh import BATCH, on_each_device

# Width of the edge at the start: softplus of it, 1.2e-4.
INITIAL_RAW_WIDTH = -9.0
STEEPNESS = 50
# Choices beyond k that a token may use; near a tie of more experts the others are left out.
EXTRA_CHOICES = 2
# Experts beyond k that a token uses on average, at which the loss of the width aims.
MEAN_EXTRA = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothTopExpertsOptions(RouterOptions):
    """Options of `SmoothTopExpertsRouter`."""

    num_selected_experts: int = option(
        1, "Experts of a token far from ties, k; near ties it uses up to two more.", minimum=1
    )
    noise_std: float = option(
        0.0,
        "Standard deviation of the noise of the logits in training, in units of 1 / experts.",
        minimum=0.0,
    )


@ROUTERS.register(options=SmoothTopExpertsOptions)
class SmoothTopExpertsRouter(NoisyRouter):
    """Lets experts in gradually whose logits come near the k-th largest.

    With z_k the k-th largest logit, u = clip((z - z_k + width) / width, 0, 1), and weights
    proportional to softmax(z) * u / (u + (1 - u)^50), outputs are continuous in the logits: an
    expert enters with weight 0. The width is softplus of a learned parameter, which
    `auxiliary_loss.smoothing_loss_weight` moves so that tokens use k + 1/2 experts on average.
    The weights of a token sum to 1, unlike V-MoE's. Capacity is for k + 1/2 choices a token;
    choices of weight 0 take no slot.

    In the released code a token may use all experts; here it may use k + 2.
    """

    mean_extra_choices = MEAN_EXTRA

    num_selected_experts: int = SmoothTopExpertsOptions.num_selected_experts
    noise_std: float = SmoothTopExpertsOptions.noise_std

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "G S D"], mask: Bool[Array, "G S"] | None = None
    ) -> tuple[Routing, Dispatcher]:
        """Routes each group of tokens independently; see `NoisyRouter`."""
        k = self.num_selected_experts
        logits, noisy_logits, noise_scale = self.score(inputs)
        logits = self.final_logits(logits)
        used = logits if noisy_logits is None else noisy_logits
        raw_width = self.param("raw_width", nn.initializers.constant(INITIAL_RAW_WIDTH), ())
        width = jax.nn.softplus(raw_width)
        weights = smooth_weights(used, k, width)
        method, options = self.dispatch_method()

        def local(weights, scores, mask):
            choices = min(k + EXTRA_CHOICES, self.num_experts)
            return top_experts_per_item(
                weights, choices, method, options, mask, scores, k + MEAN_EXTRA
            )

        plan = on_each_device(local, (BATCH, BATCH, BATCH), BATCH)(weights, used, mask)
        plan = plan.replace(weights=plan.weights / jnp.sum(plan.weights, -1, keepdims=True))
        return Routing(
            logits=logits,
            noisy_logits=noisy_logits,
            gates=jax.nn.softmax(logits),
            dispatch_gates=jax.nn.softmax(used),
            experts=plan.experts,
            kept=plan.kept,
            edge=SoftEdge(
                selected=plan.weights > 0,
                num_active=jnp.sum(weights > 0, axis=-1, dtype=jnp.float32),
                width=width,
                num_selected_experts=k,
            ),
            noise_scale=noise_scale,
        ), plan


def smooth_weights(
    logits: Float[Array, "G S E"], num_selected_experts: int, width: Float[Array, ""] | float
) -> Float[Array, "G S E"]:
    """Returns weights that are continuous in the logits, with sums of 1.

    Args:
      logits: (G, S, E).
      num_selected_experts: k, the number of experts far from ties.
      width: How far below the k-th largest logit an expert has a weight.
    """
    order = on_each_device(lambda x: jax.lax.top_k(x, num_selected_experts)[1], (BATCH,), BATCH)(
        jax.lax.stop_gradient(logits)
    )
    # A one-hot sum, not a gather: its gradient needs no scatter across devices.
    last = order[..., -1:] == jnp.arange(logits.shape[-1])
    threshold = jnp.sum(jnp.where(last, logits, 0), axis=-1, keepdims=True)
    u = jnp.clip((logits - threshold + width) / width, 0, 1)
    # exp(-softplus(50 ln(1 - u) - ln u)), which is 0 at u = 0 and 1 at u = 1.
    weights = jax.nn.softmax(logits) * u / (u + (1 - u) ** STEEPNESS)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
