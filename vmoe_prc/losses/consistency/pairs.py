"""Gates of matched tokens."""

import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int


def matched_gates(
    gates: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"]
) -> tuple[Float[Array, "B X E"], Float[Array, "B X E"], Bool[Array, "B X"]]:
    """Takes the gates of the two tokens of each pair; zeros where there is no match.

    Raises:
      ValueError: If the shapes do not fit.
    """
    if gates.ndim != 4 or gates.shape[1] != 2 or pairs.shape != (len(gates), pairs.shape[1], 2):
        raise ValueError(
            "expected gates (B, 2, T, E) and pairs (B, X, 2), not shapes "
            f"{gates.shape} and {pairs.shape}"
        )
    matched = pairs[..., 0] >= 0

    def take(view):
        index = jnp.maximum(pairs[..., view], 0)[..., None]
        return jnp.where(matched[..., None], jnp.take_along_axis(gates[:, view], index, axis=1), 0)

    return take(0), take(1), matched
