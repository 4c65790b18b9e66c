"""The record of a router's decisions."""

import flax.struct
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Leaf


@flax.struct.dataclass
class SoftEdge:
    """The soft edge of a router, which lets in experts whose logits are slightly too small.

    Attributes:
      selected: (G, S, K) bool, False for choices of weight 0, which take no slot.
      num_active: (G, S) float32, number of experts with a weight.
      width: float32 scalar, how far below the k-th largest logit the edge reaches.
      num_selected_experts: k.
    """

    selected: Leaf
    num_active: Leaf
    width: Leaf
    num_selected_experts: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Routing:
    """Decisions of a router, read by losses, agreement metrics and analysis.

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
      edge: The soft edge of the choice, None where each token chooses K experts.
      teacher_gates: (G, S, E) float32, gates that a teacher gives the tokens; None without.
      noise_scale: Standard deviation of the noise in `noisy_logits`; 0 without.
    """

    logits: Leaf
    noisy_logits: Leaf | None
    gates: Leaf
    dispatch_gates: Leaf
    experts: Leaf
    kept: Leaf
    edge: SoftEdge | None = None
    teacher_gates: Leaf | None = None
    noise_scale: float = flax.struct.field(pytree_node=False, default=0.0)

    @property
    def num_selected_experts(self) -> int:
        """Experts of a token that is far from an edge."""
        return self.edge.num_selected_experts if self.edge else self.experts.shape[-1]

    @property
    def selected(self) -> Bool[Array, "G S K"]:
        """Choices that count, with room in their experts or without."""
        return self.edge.selected if self.edge else jnp.ones_like(self.kept)

    @property
    def dropped_share(self) -> Float[Array, ""]:
        """Share of the choices that found no room; with Expert Choice, of all pairs."""
        if self.edge is None:
            return jnp.mean((~self.kept).astype(jnp.float32))
        return jnp.sum(self.selected & ~self.kept) / jnp.sum(self.selected)
