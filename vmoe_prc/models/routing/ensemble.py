"""Routing of efficient ensembles of experts, E³ (arXiv 2110.03360).

Letters as in `dispatch`, and M members. The tokens of a group come in the order (token of an
image, member): each token M times. Member m chooses among the m-th E/M experts only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.models.dispatch import Dispatcher
from vmoe_prc.models.routing.record import Routing
from vmoe_prc.models.routing.top_experts import NoisyTopExpertsPerItemRouter


class MemberDense(nn.Module):
    """A linear layer without bias for each member.

    Attributes:
      features: Outputs of a member, F.
      dtype: Dtype of the computation.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, inputs: Float[Array, "G S M D"]) -> Float[Array, "G S M F"]:
        """Applies the layer of each member to its tokens."""
        members, size = inputs.shape[-2:]
        initializer = nn.initializers.lecun_normal(in_axis=0, out_axis=2, batch_axis=(1,))
        kernel = self.param("kernel", initializer, (size, members, self.features))
        return jnp.einsum(
            "GSMD,DMF->GSMF",
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )


class EnsembleRouter(NoisyTopExpertsPerItemRouter):
    """Routes the tokens of each member to its own experts; one plan dispatches them all.

    Attributes:
      ensemble_size: M; it divides the number of experts and the size of the groups.
      by_image: Whether the record is by image: a token has the choices of all members,
        (G, S/M, K * M), and their gates, divided by M. Otherwise it is for the losses, and each
        group belongs to one member: (G * M, S/M, E/M).
    """

    ensemble_size: int = 1
    by_image: bool = False

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "G S D"], mask: Bool[Array, "G S"] | None = None
    ) -> tuple[Routing, Dispatcher]:
        """Routes each group of tokens independently; see `NoisyRouter.__call__`."""
        num_groups, group_size, size = inputs.shape
        members, own = self.ensemble_size, self.num_experts // self.ensemble_size
        tokens = inputs.reshape(num_groups, group_size // members, members, size)
        logits = MemberDense(own, self.dtype, name="dense")(tokens)
        gates = jax.nn.softmax(logits).astype(jnp.float32)
        noisy_logits, noise_scale, dispatch_gates = None, 0.0, gates
        if not self.deterministic and self.noise_std:
            noise_scale = self.noise_std / own
            noise = jax.random.normal(self.make_rng("gating"), logits.shape)
            noisy_logits = logits + noise_scale * noise
            dispatch_gates = jax.nn.softmax(noisy_logits)
        plan = self.plan(self._among_all(dispatch_gates), mask, *self.dispatch_method())

        def recorded(x):  # (G, S/M, M, E/M)
            if self.by_image:
                return x.reshape(num_groups, -1, self.num_experts)
            return jnp.swapaxes(x, 1, 2).reshape(num_groups * members, -1, own)

        def chosen(x, first):  # (G, S, K)
            x = x.reshape(num_groups, -1, members, x.shape[-1])
            if self.by_image:  # The first choices of all members come first.
                return jnp.swapaxes(x, 2, 3).reshape(*x.shape[:2], -1)
            x = jnp.swapaxes(x - first[:, None], 1, 2)
            return x.reshape(num_groups * members, -1, x.shape[-1])

        scale = members if self.by_image else 1
        routing = Routing(
            logits=recorded(logits.astype(jnp.float32)),
            noisy_logits=None if noisy_logits is None else recorded(noisy_logits),
            gates=recorded(gates) / scale,
            dispatch_gates=recorded(dispatch_gates) / scale,
            experts=chosen(plan.experts, jnp.arange(members) * own),
            kept=chosen(plan.kept.astype(jnp.int32), jnp.zeros(members, jnp.int32)) > 0,
            noise_scale=noise_scale,
        )
        return routing, plan

    @nn.nowrap
    def _among_all(self, gates: Float[Array, "G T M F"]) -> Float[Array, "G S E"]:
        """Returns the gates among all experts: zero for the experts of other members."""
        own = jnp.eye(self.ensemble_size)[..., None] * gates[..., None, :]  # (G, S/M, M, M, E/M)
        return own.reshape(gates.shape[0], -1, self.num_experts)


def to_groups(x: Float[Array, "NM T D"], members: int, group_size: int) -> Float[Array, "G S D"]:
    """Puts the M copies of a token next to each other, and splits the tokens into groups.

    Args:
      x: (N * M, T, D), the copies of an image being adjacent.
      members: M.
      group_size: S, M times the tokens of a member.
    """
    copies = x.reshape(-1, members, *x.shape[1:])  # (N, M, T, D)
    return jnp.swapaxes(copies, 1, 2).reshape(-1, group_size, x.shape[-1])


def from_groups(x: Float[Array, "G S D"], members: int, tokens: int) -> Float[Array, "NM T D"]:
    """Reverts `to_groups`.

    Args:
      x: (G, S, D).
      members: M.
      tokens: T.
    """
    copies = x.reshape(-1, tokens, members, x.shape[-1])  # (N, T, M, D)
    return jnp.swapaxes(copies, 1, 2).reshape(-1, tokens, x.shape[-1])
