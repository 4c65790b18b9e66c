"""Moves rows between N tokens and the R rows of their experts, gathering both ways.

A token has K choices; choice n*K + k is choice k of token n. Two arrays say where rows go,
each the inverse of the other:

* `row_of_choice` (N, K) int32: the row of each choice; R if the choice was dropped.
* `choice_in_row` (R,) int32: the choice that each row holds; N*K if the row is free.

Since both directions are known, gradients are gathers as well, where differentiating a
gather would scatter. Nothing of size (N, K, D) is ever formed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Int


def choices_in_rows(row_of_choice: Int[Array, "N K"], num_rows: int) -> Int[Array, " R"]:
    """Inverts `row_of_choice`."""
    choices = jnp.arange(row_of_choice.size, dtype=jnp.int32)
    free = jnp.full((num_rows,), row_of_choice.size, jnp.int32)
    return free.at[row_of_choice.ravel()].set(choices, mode="drop")


@jax.custom_vjp
def spread(
    x: Float[Array, "N D"], row_of_choice: Int[Array, "N K"], choice_in_row: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """Copies each token into the rows of its choices; free rows are zero."""
    return _take(x, choice_in_row // row_of_choice.shape[1])


def _spread_forward(x, row_of_choice, choice_in_row):
    return spread(x, row_of_choice, choice_in_row), (row_of_choice, choice_in_row)


def _spread_backward(indices, gradient):
    row_of_choice, _ = indices
    rows = [_take(gradient, row_of_choice[:, k]) for k in range(row_of_choice.shape[1])]
    return sum(rows[1:], rows[0]), *map(_no_gradient, indices)


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(
    y: Float[Array, "R D"],
    weights: Float[Array, "N K"],
    row_of_choice: Int[Array, "N K"],
    choice_in_row: Int[Array, " R"],
) -> Float[Array, "N D"]:
    """Sums the rows of each token's choices with their weights; a dropped one gives zero."""
    total = jnp.zeros((), jnp.float32)
    for k in range(row_of_choice.shape[1]):
        total += weights[:, k, None] * _take(y, row_of_choice[:, k])
    return total.astype(y.dtype)


def _collect_forward(y, weights, row_of_choice, choice_in_row):
    out = collect(y, weights, row_of_choice, choice_in_row)
    return out, (y, weights, row_of_choice, choice_in_row)


def _collect_backward(saved, gradient):
    y, weights, row_of_choice, choice_in_row = saved
    num_selected = row_of_choice.shape[1]
    by_row = _take(weights.reshape(-1, 1), choice_in_row)
    to_rows = by_row * _take(gradient, choice_in_row // num_selected)
    to_weights = [
        jnp.sum(_take(y, row_of_choice[:, k]) * gradient, axis=1, dtype=weights.dtype)
        for k in range(num_selected)
    ]
    indices = map(_no_gradient, (row_of_choice, choice_in_row))
    return to_rows.astype(y.dtype), jnp.stack(to_weights, axis=1), *indices


collect.defvjp(_collect_forward, _collect_backward)


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Takes rows; an index past the end gives zeros."""
    return rows.at[index].get(mode="fill", fill_value=0)


def _no_gradient(indices: jax.Array) -> np.ndarray:
    return np.zeros(indices.shape, jax.dtypes.float0)
