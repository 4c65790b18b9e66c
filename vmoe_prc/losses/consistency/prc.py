"""Pairwise Router Consistency (PRC; doi 10.1109/OJSP.2025.3536853)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import CONSISTENCY_LOSSES
from vmoe_prc.losses.consistency.options import ConsistencyOptions, LossAndTerms
from vmoe_prc.losses.consistency.pairs import matched_gates

DIAGONALS = ("matrix", "per_position")
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrcOptions(ConsistencyOptions):
    """Options of `prc`."""

    label: ClassVar[str] = "PRC"

    diagonal_weight: float = option(5e-3, "Weight of the diagonal term.", minimum=0.0)
    off_diagonal_weight: float = option(5e-2, "Weight of the off-diagonal term.", minimum=0.0)
    diagonal: str = option(
        "matrix",
        "Diagonal term: 'matrix' as in the paper, or 'per_position' as in the released program.",
        choices=DIAGONALS,
    )


def prc_loss(
    gates: Float[Array, "B 2 T E"],
    pairs: Int[Array, "B X 2"],
    diagonal_weight: float = PrcOptions.diagonal_weight,
    off_diagonal_weight: float = PrcOptions.off_diagonal_weight,
    diagonal: str = PrcOptions.diagonal,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Pairwise router consistency (PRC; doi 10.1109/OJSP.2025.3536853).

    With a and b the gates of the two patches of each of the n matched pairs,
    S = (E / n) * sum of a b^T, which is the identity when matched patches agree and the
    experts are used equally, also where each whole image goes to one expert. The loss is

        diagonal_weight * mean_e (S_ee - 1)^2 + off_diagonal_weight * mean_{e != f} S_ef^2.

    Args:
      gates: (B, 2, T, E) noise-free gates.
      pairs: (B, X, 2) token pairs.
      diagonal_weight: Weight of the diagonal term.
      off_diagonal_weight: Weight of the off-diagonal term.
      diagonal: 'matrix' is the formula above. 'per_position' is the term of the released
        program, which sums over images but not over positions x:
        mean_{x,e} ((E / n) * sum over images of a_e b_e - 1)^2. With X positions each sum is
        about 1 / X, so that it only rewards agreement, with gradients that are some X times
        smaller, and has no part in balance: all tokens in one expert cost 0.0350 by 'matrix'
        and, at 17 positions, 0.0046 by 'per_position', of which perfect agreement and balance
        cost 0 and 0.0044 (8 experts, the default weights).

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


@CONSISTENCY_LOSSES.register("prc", options=PrcOptions)
def _prc(gates: Array, pairs: Array, options: PrcOptions) -> LossAndTerms:
    return prc_loss(
        gates, pairs, options.diagonal_weight, options.off_diagonal_weight, options.diagonal
    )
