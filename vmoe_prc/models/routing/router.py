"""The linear router with noise that V-MoE's routers share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import Config
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models.dispatch import Dispatcher, DispatcherOptions
from vmoe_prc.models.routing.record import Routing
from vmoe_prc.runtime.mesh import BATCH, on_each_device

DotGeneral = Callable[..., jax.Array] | None
DEFAULT_DISPATCHER = "gather"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Options of every router; one of your own adds its fields in a subclass."""

    noise_std: float = option(
        1.0,
        "Standard deviation of the noise of the logits in training, in units of 1 / experts.",
        minimum=0.0,
    )
    dtype: str = option(
        "float32",
        "Type of the logits' computation. V-MoE uses the encoder's type; rounded logits "
        "choose other experts for 0.2 to 0.3% of the tokens.",
        choices=("float32", "bfloat16"),
    )
    deterministic: bool | None = option(
        None, "Whether to route without noise; None for with noise in training only."
    )
    dispatcher: Mapping[str, Any] = option(
        lambda: {"name": DEFAULT_DISPATCHER},
        "How tokens are sent to their experts and back.",
        choices=DISPATCHERS,
    )


class NoisyRouter(nn.Module):
    """Computes gates from tokens by a linear layer; subclasses turn them into a plan.

    Attributes:
      num_experts: E.
      noise_std: Noise of the logits in training, in units of 1/E; drawn from the rng
        collection 'gating'.
      dtype: Dtype in which logits and gates are computed; the `Routing` record is float32.
      deterministic: Whether to route without noise.
      dispatcher: `name` of the dispatch method, and its options.
      dot_general: Product with the kernel; JAX's own if None.
      tokens_per_image: T, for routers that look at whole images.
    """

    # Whether experts choose tokens; otherwise tokens choose experts.
    experts_choose: ClassVar[bool] = False
    # Experts beyond `num_selected_experts` that a token uses on average.
    mean_extra_choices: ClassVar[float] = 0.0
    # Whether noise is added to the logits in training.
    noisy: ClassVar[bool] = True

    num_experts: int
    noise_std: float = RouterOptions.noise_std
    dtype: str = RouterOptions.dtype
    deterministic: bool = False
    dispatcher: Config | None = None
    dot_general: DotGeneral = None
    tokens_per_image: int | None = None

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "G S D"], mask: Bool[Array, "G S"] | None = None
    ) -> tuple[Routing, Dispatcher]:
        """Routes each group of tokens independently.

        Args:
          inputs: (G, S, D) tokens.
          mask: (G, S) bool, False for tokens that must not take the place of others, as in
            the rows that fill up the last batch of an evaluation; None if there are none.

        Returns:
          The decision, and the plan that carries it out.
        """
        logits, noisy_logits, noise_scale = self.score(inputs)
        logits = self.final_logits(logits)
        gates = jax.nn.softmax(logits).astype(jnp.float32)
        dispatch_gates = gates if noisy_logits is None else jax.nn.softmax(noisy_logits)
        plan = self.plan(dispatch_gates, mask, *self.dispatch_method())
        routing = Routing(
            logits=logits.astype(jnp.float32),
            noisy_logits=noisy_logits,
            gates=gates,
            dispatch_gates=dispatch_gates,
            experts=plan.experts,
            kept=plan.kept,
            noise_scale=noise_scale,
        )
        return routing, plan

    def final_logits(self, logits: Float[Array, "G S E"]) -> Float[Array, "G S E"]:
        """Returns its argument; analysis intercepts the call to route from outside."""
        return logits

    @nn.nowrap
    def dispatch_method(self) -> tuple[str, DispatcherOptions]:
        """Returns the name of the dispatch method and its options."""
        options = dict(self.dispatcher or {})
        method = options.pop("name", DEFAULT_DISPATCHER)
        return method, DISPATCHERS.options(method)(**options)

    @nn.nowrap
    def score(self, inputs: Float[Array, "... D"]) -> tuple[Array, Array | None, float]:
        """Returns logits, noisy logits or None without noise, and the scale of the noise."""
        return self.with_noise(self.linear_logits(inputs))

    @nn.nowrap
    def linear_logits(self, inputs: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """Applies the layer `dense`."""
        return nn.Dense(
            self.num_experts,
            use_bias=False,
            dtype=self.dtype,
            precision=jax.lax.Precision.HIGHEST,
            dot_general=self.dot_general,
            name="dense",
        )(inputs)

    @nn.nowrap
    def with_noise(self, logits: Array) -> tuple[Array, Array | None, float]:
        """Returns logits, noisy logits or None without noise, and the scale of the noise."""
        if self.deterministic or self.noise_std == 0 or not self.noisy:
            return logits, None, 0.0
        noise_scale = self.noise_std / self.num_experts
        noise = jax.random.normal(self.make_rng("gating"), logits.shape)
        return logits, logits + noise_scale * noise, noise_scale

    @nn.nowrap
    def plan(
        self,
        gates: Float[Array, "G S E"],
        mask: Bool[Array, "G S"] | None,
        method: str,
        options: DispatcherOptions,
    ) -> Dispatcher:
        """Turns the gates of the groups of all devices into a plan."""
        make_plan = functools.partial(self.make_plan, method=method, options=options)
        # Left to the compiler, sorting would gather the groups of all devices.
        return on_each_device(make_plan, (BATCH, BATCH), BATCH)(gates, mask)

    def make_plan(
        self, gates: jax.Array, mask: jax.Array | None, method: str, options: DispatcherOptions
    ) -> Dispatcher:
        """Turns the gates (G, S, E) of the groups of a device into a plan."""
        raise NotImplementedError
