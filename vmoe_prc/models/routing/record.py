"""The record of a router's decisions."""

import flax.struct

from vmoe_prc.arrays import Leaf


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
      noise_scale: Standard deviation of the noise in `noisy_logits`; 0 without.
    """

    logits: Leaf
    noisy_logits: Leaf | None
    gates: Leaf
    dispatch_gates: Leaf
    experts: Leaf
    kept: Leaf
    noise_scale: float = flax.struct.field(pytree_node=False, default=0.0)
