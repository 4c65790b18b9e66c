"""Moves data between N tokens and the R rows of their experts by gathers, both ways.

A token has K choices, and each choice has its row. Since both directions of this map are known,
gradients are gathers as well, where differentiating a gather would scatter. No array of shape
(N, K, D) is ever formed.
"""

import functools
import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Int, Leaf, Size


@flax.struct.dataclass
class Permutation:
    """Rows of the tokens' choices, in both directions.

    Attributes:
      of_choice: (N, K) int32, the row of each choice; R if it was dropped.
      token: (R,) int32, the token whose choice each row holds; N if the row is free.
    """

    of_choice: Leaf
    token: Leaf

    @classmethod
    def create(cls, of_choice: Int[Array, "N K"], num_rows: Size) -> "Permutation":
        """Completes the map from the rows of the choices, no two of which are equal."""
        num_tokens = of_choice.shape[0]
        tokens = jnp.arange(num_tokens, dtype=jnp.int32)[:, None]
        tokens = jnp.broadcast_to(tokens, of_choice.shape)
        free = jnp.full((num_rows,), num_tokens, jnp.int32)
        return cls(of_choice, free.at[of_choice].set(tokens, mode="drop"))


@jax.custom_vjp
def permute(x: Float[Array, "N D"], rows: Permutation) -> Float[Array, "R D"]:
    """Copies each token into the rows of its choices; free rows are zero."""
    return _take(x, rows.token)


def _permute_forward(x, rows):
    return permute(x, rows), rows


def _permute_backward(rows, gradient):
    parts = [_take(gradient, index) for index in rows.of_choice.T]
    return sum(parts[1:], parts[0]), jax.tree.map(_no_gradient, rows)


permute.defvjp(_permute_forward, _permute_backward)


def unpermute(
    y: Float[Array, "R D"],
    weights: Float[Array, "N K"],
    rows: Permutation,
    dtype: Any = None,
) -> Float[Array, "N D"]:
    """Sums the rows of each token's choices with their weights; a dropped one gives zero.

    Args:
      y: (R, D).
      weights: (N, K) float32; products and sums are float32.
      rows: The rows of the choices.
      dtype: Dtype of the result; the dtype of `y` if None.
    """
    return _unpermute(jnp.dtype(dtype or y.dtype), y, weights, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unpermute(dtype, y, weights, rows):
    parts = [
        weight[:, None] * _take(y, index)
        for weight, index in zip(weights.T, rows.of_choice.T, strict=True)
    ]
    return functools.reduce(operator.add, parts).astype(dtype)


def _unpermute_forward(dtype, y, weights, rows):
    return _unpermute(dtype, y, weights, rows), (y, weights, rows)


def _unpermute_backward(dtype, saved, gradient):
    del dtype
    y, weights, rows = saved
    of_row = jnp.zeros(rows.token.shape, weights.dtype)
    of_row = of_row.at[rows.of_choice].set(weights, mode="drop")
    to_rows = of_row[:, None] * _take(gradient, rows.token)
    to_weights = [
        jnp.sum(_take(y, index) * gradient, axis=1, dtype=weights.dtype)
        for index in rows.of_choice.T
    ]
    return (
        to_rows.astype(y.dtype),
        jnp.stack(to_weights, axis=1),
        jax.tree.map(_no_gradient, rows),
    )


_unpermute.defvjp(_unpermute_forward, _unpermute_backward)


def _take(rows: Array, index: Array) -> jax.Array:
    """Takes rows; an index past the end gives zeros."""
    return jnp.asarray(rows).at[index].get(mode="fill", fill_value=0)


def _no_gradient(indices: jax.Array) -> np.ndarray:
    return np.zeros(indices.shape, jax.dtypes.float0)
