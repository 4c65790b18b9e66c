"""Balance without a loss: a bias per expert in the choice (arXiv 2408.15664)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions, top_experts_per_item
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter, TopExpertsOptions
from vmoe_prc.runtime.mesh import BATCH, on_each_device

# A parameter of this name is not optimised: its gradient is what a step subtracts from it.
BIAS = "balance_bias"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasBalancedOptions(TopExpertsOptions):
    """Options of `BiasBalancedRouter`."""

    bias_rate: float = option(
        1e-3, "Change of an expert's bias in each step, towards equal loads.", minimum=0.0
    )


@ROUTERS.register(options=BiasBalancedOptions)
class BiasBalancedRouter(NoisyTopExpertsPerItemRouter):
    """Chooses the K largest gates plus biases; only the gates weigh the outputs.

    After each step an expert with more choices in the batch than the mean loses `bias_rate`,
    and one with fewer gains it. In evaluation the biases stay. With microsteps the change is the
    mean over the parts of the batch. `frozen_pattern` does not stop it; `bias_rate = 0` does.
    """

    bias_rate: float = BiasBalancedOptions.bias_rate

    @nn.nowrap
    def plan(
        self,
        gates: Float[Array, "G S E"],
        mask: Bool[Array, "G S"] | None,
        method: str,
        options: DispatcherOptions,
    ) -> Dispatcher:
        """Turns the gates of the groups of all devices into a plan."""
        bias = self.param(BIAS, nn.initializers.zeros, (self.num_experts,))

        def local(gates, scores, mask):
            k = self.num_selected_experts
            return top_experts_per_item(gates, k, method, options, mask, scores)

        specs = (BATCH, BATCH, BATCH)
        plan = on_each_device(local, specs, BATCH)(gates, gates + bias, mask)
        chosen = plan.experts[..., None] == jnp.arange(self.num_experts)
        load = jnp.sum(chosen, axis=(0, 1, 2), dtype=jnp.float32)
        excess = self.bias_rate * jnp.sign(load - jnp.mean(load))
        plan = dataclasses.replace(plan, weights=_with_gradient(plan.weights, bias, excess))
        return self.normalized(plan)


@jax.custom_vjp
def _with_gradient(weights: jax.Array, bias: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the weights; differentiated, the bias has the given gradient."""
    del bias, gradient
    return weights


def _forward(weights, bias, gradient):
    del bias
    return weights, gradient


def _backward(gradient, weights_gradient):
    return weights_gradient, gradient, jnp.zeros_like(gradient)


_with_gradient.defvjp(_forward, _backward)
