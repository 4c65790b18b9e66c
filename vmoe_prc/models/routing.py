"""Routers decide which experts each token goes to, and report it as a `Routing` record."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Leaf
from vmoe_prc.config import Config
from vmoe_prc.models import dispatch
from vmoe_prc.models.dispatch import Dispatcher
from vmoe_prc.runtime.mesh import BATCH, on_each_device

DotGeneral = Callable[..., jax.Array] | None


@flax.struct.dataclass
class Routing:
    """What a router decided; losses, agreement metrics and analysis read it.

    Attributes:
      logits: (G, S, E) float32, noise-free.
      noisy_logits: (G, S, E) float32, or None without noise.
      gates: (G, S, E) float32, softmax of `logits`.
      dispatch_gates: (G, S, E) float32, the gates that the tokens were dispatched by:
        softmax of `noisy_logits` if there are any, otherwise equal to `gates`.
      experts: (G, S, K) int32, experts chosen by `dispatch_gates`, best first. With
        Expert Choice K = E: all experts, best first.
      kept: (G, S, K) bool, False where the choice was dropped (Expert Choice: where the
        expert did not take the token).
      noise_scale: Standard deviation of the noise in `noisy_logits`; 0 without.
    """

    logits: Leaf
    noisy_logits: Leaf | None
    gates: Leaf
    dispatch_gates: Leaf
    experts: Leaf
    kept: Leaf
    noise_scale: float = flax.struct.field(pytree_node=False, default=0.0)


class _NoisyRouter(nn.Module):
    """Computes gates from tokens; subclasses turn them into a plan.

    Attributes:
      num_experts: E.
      noise_std: Noise of the logits in training, in units of 1/E; drawn from the rng
        collection 'gating'.
      deterministic: Whether to route without noise.
      dispatcher: Options of the dispatch: `name` (the method), `capacity_factor`,
        `batch_priority` (experts per item only) and `bfloat16`.
      dot_general: Product with the kernel; that of JAX if None.
    """

    num_experts: int
    noise_std: float = 1.0
    deterministic: bool = False
    dispatcher: Config | None = None
    dot_general: DotGeneral = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "G S D"]) -> tuple[Routing, Dispatcher]:
        """Routes each group of tokens by itself.

        Args:
          inputs: (G, S, D) tokens.

        Returns:
          The decision, and the plan that carries it out.
        """
        # Always float32: rounding the logits would change which experts are chosen.
        logits = nn.Dense(
            self.num_experts,
            use_bias=False,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            dot_general=self.dot_general,
            name="dense",
        )(inputs.astype(jnp.float32))
        gates = jax.nn.softmax(logits)
        if self.deterministic or self.noise_std == 0:
            noise_scale, noisy_logits, dispatch_gates = 0.0, None, gates
        else:
            noise_scale = self.noise_std / self.num_experts
            noise = jax.random.normal(self.make_rng("gating"), logits.shape)
            noisy_logits = logits + noise_scale * noise
            dispatch_gates = jax.nn.softmax(noisy_logits)
        options = dict(self.dispatcher or {})
        make_plan = functools.partial(
            self.make_plan,
            method=options.pop("name", "gather"),
            capacity_factor=options.pop("capacity_factor", 1.05),
            **options,
        )
        # Left to the compiler, sorting would gather the groups of all devices.
        plan = on_each_device(make_plan, (BATCH,), BATCH)(dispatch_gates)
        routing = Routing(
            logits=logits,
            noisy_logits=noisy_logits,
            gates=gates,
            dispatch_gates=dispatch_gates,
            experts=plan.experts,
            kept=plan.kept,
            noise_scale=noise_scale,
        )
        return routing, plan

    def make_plan(self, gates: jax.Array, **options: Any) -> Dispatcher:
        raise NotImplementedError


class NoisyTopExpertsPerItemRouter(_NoisyRouter):
    """Each token goes to the K experts of its largest gates (arXiv 2106.05974)."""

    num_selected_experts: int = 1

    @nn.nowrap
    def make_plan(self, gates: Float[Array, "G S E"], **options: Any) -> Dispatcher:
        """Plans the dispatch of tokens to their top experts."""
        return dispatch.top_experts_per_item(gates, self.num_selected_experts, **options)


class NoisyTopItemsPerExpertRouter(_NoisyRouter):
    """Each expert takes the C tokens of its largest gates (Expert Choice)."""

    @nn.nowrap
    def make_plan(self, gates: Float[Array, "G S E"], **options: Any) -> Dispatcher:
        """Plans the dispatch of the top tokens of each expert."""
        return dispatch.top_items_per_expert(gates, **options)


ROUTERS: dict[str, type[_NoisyRouter]] = {
    "NoisyTopExpertsPerItemRouter": NoisyTopExpertsPerItemRouter,
    "NoisyTopItemsPerExpertRouter": NoisyTopItemsPerExpertRouter,
}
