"""Soft MoE (arXiv 2308.00951): slots are mixtures of tokens, outputs mixtures of slots."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Leaf
from vmoe_prc.config import Config
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import BufferMethod, DispatcherOptions, Experts
from vmoe_prc.models.routing.record import Routing
from vmoe_prc.models.routing.router import DotGeneral, RouterOptions

NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftRouterOptions(RouterOptions):
    """Options of `SoftRouter`; slots cannot be full: of the dispatcher only `bfloat16` counts."""

    num_slots: int | None = option(
        None, "Slots of each expert, p; None for tokens * capacity_factor / experts.", minimum=1
    )
    capacity_factor: float | None = option(
        1.0, "Slots relative to tokens, where their number is not given.", above=0.0
    )
    noise_std: float = option(
        0.0, "Standard deviation of the noise of the logits in training.", minimum=0.0
    )


class SoftDispatch(BufferMethod):
    """Fills each slot with a convex combination of the tokens of its group."""

    @staticmethod
    def to_buffers(
        plan: "SoftPlan", x: Float[Array, "G S D"], dtype: Any
    ) -> Float[Array, "E G C D"]:
        """Mixes the tokens of this device into slots."""
        return jnp.einsum("GSEC,GSD->EGCD", plan.dispatch_weights.astype(dtype), x)

    @staticmethod
    def from_buffers(
        plan: "SoftPlan", y: Float[Array, "E G C D"], dtype: Any
    ) -> Float[Array, "G S D"]:
        """Mixes the slots into the tokens of this device."""
        return jnp.einsum("GSEC,EGCD->GSD", plan.combine_weights.astype(dtype), y)


@flax.struct.dataclass
class SoftPlan:
    """Weights of tokens in slots, and of slots in tokens.

    Attributes:
      dispatch_weights: (N, T, E, p) float32, sums over the T tokens of an image are 1.
      combine_weights: (N, T, E, p) float32, sums over the slots are 1.
      capacity: p.
      options: Options of the dispatch.
    """

    dispatch_weights: Leaf
    combine_weights: Leaf
    capacity: int = flax.struct.field(pytree_node=False)
    options: DispatcherOptions = flax.struct.field(pytree_node=False)

    def apply(self, x: Float[Array, "G S D"], experts: Experts) -> Float[Array, "G S D"]:
        """Applies the experts to the slots and mixes their outputs."""
        images = x.reshape(*self.dispatch_weights.shape[:2], -1)  # (N, T, D)
        return SoftDispatch.apply(self, images, experts).reshape(x.shape)


@ROUTERS.register(options=SoftRouterOptions)
class SoftRouter(nn.Module):
    """Compares tokens with one learned direction per slot, by their cosine, within each image.

    In the `Routing` record a token chooses all experts, best first by the sum of its combine
    weights, and none is dropped.

    Attributes:
      num_experts: E.
      num_slots: p; None for T * capacity_factor / E, rounded.
      capacity_factor: Slots relative to tokens.
      dtype: Dtype in which the similarities are computed.
      noise_std: Noise of the logits in training; drawn from the rng collection 'gating'.
      deterministic: Whether to route without noise.
      dispatcher: `name` and options of a dispatch method, of which only `bfloat16` is used.
      dot_general: Not used: the directions are no kernel of a dense layer.
      tokens_per_image: T; the size of a group if None.
    """

    experts_choose = True

    num_experts: int
    num_slots: int | None = SoftRouterOptions.num_slots
    dtype: str = SoftRouterOptions.dtype
    capacity_factor: float | None = SoftRouterOptions.capacity_factor
    noise_std: float = SoftRouterOptions.noise_std
    deterministic: bool = False
    dispatcher: Config | None = None
    dot_general: DotGeneral = None
    tokens_per_image: int | None = None

    @staticmethod
    def slots_per_expert(options: Config, tokens: int, num_experts: int) -> int:
        """Returns p, the slots that each expert has for the tokens of an image.

        Args:
          options: Options of the router.
          tokens: T.
          num_experts: E.
        """
        if (slots := options.get("num_slots")) is not None:
            return slots
        factor = options.get("capacity_factor")
        return max(1, round(tokens * (1.0 if factor is None else factor) / num_experts))

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "G S D"], mask: Bool[Array, "G S"] | None = None
    ) -> tuple[Routing, SoftPlan]:
        """Routes each image independently.

        Args:
          inputs: (G, S, D) tokens.
          mask: Not used: padding rows are images, and images do not share slots.
        """
        del mask
        size, tokens = inputs.shape[-1], self.tokens_per_image or inputs.shape[1]
        options = {"num_slots": self.num_slots, "capacity_factor": self.capacity_factor}
        slots = self.slots_per_expert(options, tokens, self.num_experts)
        mu = self.param("mu", nn.initializers.lecun_normal(), (size, self.num_experts, slots))
        scale = self.param("scale", nn.initializers.ones, ())
        images = _unit(inputs.reshape(-1, tokens, size).astype(self.dtype), axis=-1)
        directions = scale.astype(self.dtype) * _unit(mu.astype(self.dtype), axis=0)
        logits = jnp.einsum(
            "NTD,DEp->NTEp", images, directions, precision=jax.lax.Precision.HIGHEST
        )
        noisy = logits
        noise_scale = 0.0 if self.deterministic else self.noise_std
        if noise_scale:
            noisy += noise_scale * jax.random.normal(
                self.make_rng("gating"), logits.shape, logits.dtype
            )
        plan = SoftPlan(
            dispatch_weights=jax.nn.softmax(noisy, axis=1),
            combine_weights=jax.nn.softmax(noisy, axis=(2, 3)),
            capacity=slots,
            options=DispatcherOptions(bfloat16=(self.dispatcher or {}).get("bfloat16", False)),
        )
        groups = (*inputs.shape[:2], self.num_experts)
        # The softmax of these sums over the slots of an expert is the sum of its weights.
        of_experts = [
            jax.nn.logsumexp(x.astype(jnp.float32), axis=-1).reshape(groups)
            for x in (logits, noisy)
        ]
        return self._record(
            of_experts[0], of_experts[1] if noise_scale else None, noise_scale
        ), plan

    @nn.nowrap
    def _record(self, of_experts: Any, noisy: Any | None, noise_scale: float) -> Routing:
        gates = jax.nn.softmax(of_experts)
        dispatch_gates = gates if noisy is None else jax.nn.softmax(noisy)
        _, experts = jax.lax.top_k(jax.lax.stop_gradient(dispatch_gates), self.num_experts)
        return Routing(
            logits=of_experts,
            noisy_logits=noisy,
            gates=gates,
            dispatch_gates=dispatch_gates,
            experts=experts,
            kept=jnp.ones(experts.shape, bool),
            noise_scale=noise_scale,
        )


def _unit(x: Array, axis: int) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + NORM_EPSILON)
