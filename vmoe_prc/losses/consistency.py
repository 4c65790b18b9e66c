"""Losses that make the router treat matched patches of two views alike.

Every function takes noise-free gates (B, 2, T, E) of B image pairs and token pairs
(B, X, 2) int32 (view 0, view 1), where (-1, -1) marks no match. Sums run over the whole
batch: under jit with a sharded batch, over the global one. Without any matched pair
the losses are 0 with zero gradient.
"""

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float, Int

DIAGONALS = ("matrix", "per_position")
HIGHEST = jax.lax.Precision.HIGHEST


def prc_loss(
    gates: Float[Array, "B 2 T E"],
    pairs: Int[Array, "B X 2"],
    diagonal_weight: float = 5e-3,
    off_diagonal_weight: float = 5e-2,
    diagonal: str = "matrix",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Pairwise router consistency (PRC; doi 10.1109/OJSP.2025.3536853).

    With a and b the gates of the two patches of each of the n matched pairs,
    S = (E / n) * sum of a b^T, which is the identity when matched patches agree and the
    experts are used equally. The loss is

        diagonal_weight * mean_e (S_ee - 1)^2 + off_diagonal_weight * mean_{e != f} S_ef^2.

    Args:
      gates: (B, 2, T, E) noise-free gates.
      pairs: (B, X, 2) token pairs.
      diagonal_weight: Weight of the diagonal term.
      off_diagonal_weight: Weight of the off-diagonal term.
      diagonal: 'matrix' is the formula above. 'per_position' is the term of the released
        program, which sums over images but not over positions x:
        mean_{x,e} ((E / n) * sum over images of a_e b_e - 1)^2.

    Returns:
      The loss, and its terms without their weights as `diagonal` and `off_diagonal`,
      and n as `num_pairs`. A term of weight 0 does not reach the loss.

    Raises:
      ValueError: If the shapes do not fit, or `diagonal` is unknown.
    """
    if diagonal not in DIAGONALS:
        raise ValueError(f"unknown diagonal {diagonal!r}; allowed: {', '.join(DIAGONALS)}")
    a, b, matched = matched_gates(gates, pairs)
    num_experts = gates.shape[-1]
    num_pairs = jnp.sum(matched.astype(a.dtype))
    scale = num_experts / jnp.maximum(num_pairs, 1)
    s = scale * jnp.einsum("bxe,bxf->ef", a, b, precision=HIGHEST)  # (E, E)
    # (E,), or (X, E) per position.
    agreement = jnp.diagonal(s) if diagonal == "matrix" else scale * jnp.sum(a * b, axis=0)
    off_diagonal = jnp.where(jnp.eye(num_experts, dtype=bool), 0, s)
    any_pair = (num_pairs > 0).astype(a.dtype)
    terms = {
        "diagonal": any_pair * jnp.mean((agreement - 1) ** 2),
        "off_diagonal": jnp.sum(off_diagonal**2) / max(num_experts * (num_experts - 1), 1),
    }
    weights = {"diagonal": diagonal_weight, "off_diagonal": off_diagonal_weight}
    loss = sum((w * terms[name] for name, w in weights.items() if w), jnp.zeros(()))
    return loss, {**terms, "num_pairs": num_pairs}


def l2_consistency(gates: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"]) -> Float[Array, ""]:
    """Mean over matched pairs of sqrt(sum_e (a_e - b_e)^2 + 1e-9)."""
    a, b, matched = matched_gates(gates, pairs)
    return _mean(jnp.sqrt(jnp.sum((a - b) ** 2, axis=-1) + 1e-9), matched)


def jsd_consistency(gates: Float[Array, "B 2 T E"], pairs: Int[Array, "B X 2"]) -> Float[Array, ""]:
    """Mean over matched pairs of the Jensen-Shannon divergence, in nats: [0, ln 2]."""
    a, b, matched = matched_gates(gates, pairs)
    middle = (a + b) / 2
    negentropy = [jnp.sum(_xlogx(p), axis=-1) for p in (a, b, middle)]
    return _mean((negentropy[0] + negentropy[1]) / 2 - negentropy[2], matched)


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


def _mean(values: Float[Array, "B X"], matched: Bool[Array, "B X"]) -> Float[Array, ""]:
    total = jnp.sum(jnp.where(matched, values, 0))
    return total / jnp.maximum(jnp.sum(matched), 1)


def _xlogx(p: jax.Array) -> jax.Array:
    # The inner where keeps the gradient finite where a gate underflows to 0.
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)
