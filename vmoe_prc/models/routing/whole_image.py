"""A control: all tokens of an image choose the same experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter, TopExpertsOptions


@ROUTERS.register(options=TopExpertsOptions)
class WholeImageRouter(NoisyTopExpertsPerItemRouter):
    """Scores the mean of an image's tokens, and routes all of them by it.

    Such a router minimises PRC without telling places apart. With limited capacity the last
    tokens of a group are dropped: use the dispatcher 'dropless'.
    """

    @nn.nowrap
    def score(self, inputs: Float[Array, "G S D"]) -> tuple[jax.Array, jax.Array | None, float]:
        """Returns logits, noisy logits or None without noise, and the scale of the noise."""
        num_groups, group_size, size = inputs.shape
        tokens = self.tokens_per_image or group_size
        images = jnp.mean(inputs.reshape(-1, tokens, size), axis=1)  # (N, D), for any groups
        logits, noisy_logits, noise_scale = super().score(images)

        def of_tokens(x):
            return jnp.repeat(x, tokens, axis=0).reshape(num_groups, group_size, -1)

        noisy_logits = None if noisy_logits is None else of_tokens(noisy_logits)
        return of_tokens(logits), noisy_logits, noise_scale
