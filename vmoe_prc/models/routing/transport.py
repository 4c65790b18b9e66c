"""Routers by optimal transport between tokens and experts (arXiv 2209.15466).

A plan (S, E) of a group holds how much of each token goes to each expert: its rows sum to 1 and its
columns to S / E, at least nearly so after few iterations. Experts are chosen by the plan, and weigh
their outputs by the softmax of the logits. The three kinds of plans differ in what makes them
smooth: entropy (Sinkhorn), squares, or squares with at most k entries in a row or column.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.dispatch import (
    Dispatcher,
    buffer_capacity,
    top_experts_per_item,
    top_items_per_expert,
)
from vmoe_prc.models.routing.record import Routing
from vmoe_prc.models.routing.router import NoisyRouter, RouterOptions
from vmoe_prc.runtime.mesh import BATCH, on_each_device, vary

# Norm of the gradient at which the ascent of a plan by squares ends.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransportOptions(RouterOptions):
    """Options of routers by optimal transport."""

    maxiter: int = option(20, "Iterations that make the plan.", minimum=1)
    use_softmax_combine_weights: bool = option(
        True,
        "Whether outputs are weighed by the softmax of the logits; otherwise by the plan, whose "
        "gradient then goes through all iterations.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerItemOptions(TransportOptions):
    """Options of routers by optimal transport in which tokens choose."""

    num_selected_experts: int = option(1, "Experts that each token chooses, K.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaresOptions(TransportOptions):
    """Options of plans by squares."""

    adam_lr: float = option(1e-2, "Learning rate of Adam, which makes the plan.", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerItemSquaresOptions(PerItemOptions, SquaresOptions):
    """Options of plans by squares in which tokens choose."""


def sinkhorn_plan(similarities: Float[Array, "S E"], maxiter: int) -> Float[Array, "S E"]:
    """Returns the plan of largest similarity plus entropy (Sinkhorn, arXiv 1306.0895).

    Args:
      similarities: (S, E).
      maxiter: Iterations. After the last one all rows sum to 1.
    """
    tokens, experts = similarities.shape

    def iterate(potentials, _):
        of_tokens, of_experts = potentials
        of_experts = jnp.log(tokens / experts) - jax.nn.logsumexp(
            similarities + of_tokens[:, None], axis=0
        )
        of_tokens = -jax.nn.logsumexp(similarities + of_experts, axis=1)
        return (of_tokens, of_experts), None

    start = vary(jnp.zeros(tokens)), vary(jnp.zeros(experts))
    (of_tokens, of_experts), _ = jax.lax.scan(iterate, start, length=maxiter)
    return jnp.exp(similarities + of_tokens[:, None] + of_experts)


def squares_plan(
    similarities: Float[Array, "M N"],
    column_sum: float,
    largest: int,
    maxiter: int,
    learning_rate: float,
) -> Float[Array, "M N"]:
    """Returns the plan of largest similarity minus squares, with few entries in a column.

    Adam minimises the semi-dual (arXiv 1710.06276, equation 10; 2209.15466) from potentials of 0.
    The sums of the columns are exact, the sums of the rows only after many iterations.

    Args:
      similarities: (M, N).
      column_sum: Sum of each column of the plan; the rows have equal sums, too.
      largest: Most entries of a column that are not 0, k.
      maxiter: Iterations at most.
      learning_rate: Learning rate of Adam.
    """
    rows, columns = similarities.shape
    row_sum = column_sum * columns / rows
    project = jax.vmap(functools.partial(project_on_simplex, largest=largest))

    def plan(potentials):
        values = (similarities + potentials[:, None]) / column_sum
        return column_sum * project(values.T).T

    # The root of a second moment of 0 would have an infinite derivative.
    optimizer = optax.adam(learning_rate, eps_root=1e-30)

    def iterate(carry, _):
        potentials, state, running = carry
        gradient = jnp.sum(plan(potentials), axis=1) - row_sum
        update, new_state = optimizer.update(gradient, state)
        # Adam would blow up the rounding of a gradient that is 0.
        running &= jnp.linalg.norm(gradient) > TOLERANCE
        potentials, state = jax.tree.map(
            lambda new, old: jnp.where(running, new, old),
            (potentials + update, new_state),
            (potentials, state),
        )
        return (potentials, state, running), None

    zeros = jnp.zeros(rows)
    start = jax.tree.map(vary, (zeros, optimizer.init(zeros), jnp.ones((), bool)))
    (potentials, _, _), _ = jax.lax.scan(iterate, start, length=maxiter)
    return plan(potentials)


def project_on_simplex(values: Float[Array, " N"], largest: int) -> Float[Array, " N"]:
    """Returns the closest probabilities of which at most `largest` are not 0 (arXiv 1206.1529)."""
    highest, index = jax.lax.top_k(values, largest)
    count = jnp.arange(1, largest + 1)
    excess = (jnp.cumsum(highest) - 1) / count
    used = jnp.sum(highest > excess)
    kept = jax.nn.relu(highest - excess[used - 1])
    return jnp.zeros_like(values).at[index].set(kept)


class TransportRouter(NoisyRouter):
    """Chooses by a plan; subclasses make the plan and set `experts_choose`.

    Attributes:
      maxiter: Iterations that make the plan.
      use_softmax_combine_weights: Whether gates weigh the outputs; otherwise the plan does.
    """

    maxiter: int = TransportOptions.maxiter
    use_softmax_combine_weights: bool = TransportOptions.use_softmax_combine_weights

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "G S D"], mask: Bool[Array, "G S"] | None = None
    ) -> tuple[Routing, Dispatcher]:
        """Routes each group of tokens independently; see `NoisyRouter.__call__`."""
        logits, noisy_logits, noise_scale = self.score(inputs)
        logits = self.final_logits(logits.astype(jnp.float32))
        gates = jax.nn.softmax(logits)
        method, options = self.dispatch_method()

        def local(logits, gates, mask):
            transport = jax.vmap(functools.partial(self.transport, options=options))(logits)
            if self.use_softmax_combine_weights:
                transport = jax.lax.stop_gradient(transport)
                weights = gates
            else:
                weights = transport
            return transport, self.choose(weights, transport, mask, method, options)

        sources = logits if noisy_logits is None else noisy_logits
        # As released: with noise, only where experts choose.
        weights = jax.nn.softmax(sources) if self.experts_choose else gates
        specs = (BATCH, BATCH, BATCH)
        transport, plan = on_each_device(local, specs, BATCH)(sources, weights, mask)
        routing = Routing(
            logits=logits,
            noisy_logits=noisy_logits,
            gates=gates,
            dispatch_gates=transport,
            experts=plan.experts,
            kept=plan.kept,
            noise_scale=noise_scale,
        )
        return routing, plan

    def transport(self, logits: Float[Array, "S E"], options: Any) -> Float[Array, "S E"]:
        """Makes the plan of a group."""
        raise NotImplementedError

    def choose(self, weights, transport, mask, method, options) -> Dispatcher:
        """Turns the plans of the groups of a device into choices."""
        raise NotImplementedError


class _PerItem(TransportRouter):
    """Tokens choose the K experts to which most of them goes."""

    num_selected_experts: int = PerItemOptions.num_selected_experts

    @nn.nowrap
    def choose(self, weights, transport, mask, method, options) -> Dispatcher:
        """Turns the plans of the groups of a device into choices."""
        k = self.num_selected_experts
        return top_experts_per_item(weights, k, method, options, mask, transport)


class _PerExpert(TransportRouter):
    """Experts choose the C tokens of which they get most."""

    experts_choose = True

    @nn.nowrap
    def choose(self, weights, transport, mask, method, options) -> Dispatcher:
        """Turns the plans of the groups of a device into choices."""
        return top_items_per_expert(weights, method, options, mask, transport)


@ROUTERS.register(options=PerItemOptions)
class KLProjectionNoisyTopExpertsPerItemRouter(_PerItem):
    """Sinkhorn's plan of the noisy logits, of which tokens choose."""

    @nn.nowrap
    def transport(self, logits: Float[Array, "S E"], options: Any) -> Float[Array, "S E"]:
        """Makes the plan of a group."""
        return sinkhorn_plan(logits, self.maxiter)


@ROUTERS.register(options=TransportOptions)
class KLProjectionNoisyTopItemsPerExpertRouter(_PerExpert):
    """Sinkhorn's plan of the noisy logits, of which experts choose."""

    @nn.nowrap
    def transport(self, logits: Float[Array, "S E"], options: Any) -> Float[Array, "S E"]:
        """Makes the plan of a group."""
        return sinkhorn_plan(logits, self.maxiter)


@ROUTERS.register(options=SquaresOptions)
class SparseProjectionTransportTopItemsPerExpertRouter(_PerExpert):
    """The plan of the gates by squares, of which experts choose; it has no noise."""

    adam_lr: float = SquaresOptions.adam_lr
    noisy = False

    @nn.nowrap
    def transport(self, logits: Float[Array, "S E"], options: Any) -> Float[Array, "S E"]:
        """Makes the plan of a group."""
        gates = jax.nn.softmax(logits)
        most = self.most_tokens(len(gates), options)
        return squares_plan(gates, len(gates) / self.num_experts, most, self.maxiter, self.adam_lr)

    @nn.nowrap
    def most_tokens(self, size: int, options: Any) -> int:
        """Returns how many tokens of a group of S an expert may get: all of them."""
        del options
        return size


@ROUTERS.register(options=PerItemSquaresOptions)
class KSparseProjectionTransportTopExpertsPerItemRouter(_PerItem):
    """The plan of the gates by squares, with K experts per token, without noise."""

    adam_lr: float = SquaresOptions.adam_lr
    noisy = False

    @nn.nowrap
    def transport(self, logits: Float[Array, "S E"], options: Any) -> Float[Array, "S E"]:
        """Makes the plan of a group."""
        gates = jax.nn.softmax(logits)
        k = self.num_selected_experts
        return squares_plan(gates.T, 1.0, k, self.maxiter, self.adam_lr).T


@ROUTERS.register(options=SquaresOptions)
class KSparseProjectionTransportTopItemsPerExpertRouter(
    SparseProjectionTransportTopItemsPerExpertRouter
):
    """The plan of the gates by squares; an expert gets at most its capacity. Without noise."""

    @nn.nowrap
    def most_tokens(self, size: int, options: Any) -> int:
        """Returns the capacity of an expert in a group of S tokens."""
        return buffer_capacity(size, 1, self.num_experts, options)
