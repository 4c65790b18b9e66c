"""Matrix products of sorted rows with the matrices of their groups.

R rows are sorted by group; group e has `sizes[e]` of them and the matrix `kernels[e]`. Rows
beyond the last group are ignored, and their products are undefined.

Where XLA has no instruction for this (it has on TPU), `jax.lax.ragged_dot` multiplies all
rows by all matrices. Here a loop over the groups takes blocks of rows: the work is that of
the rows there are, and half a block more for each group.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Int

BLOCK = 128


def grouped_product(
    rows: Float[Array, "R D"], kernels: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "R F"]:
    """Multiplies each row by the matrix of its group; sums are float32.

    Args:
      rows: (R, D), sorted by group.
      kernels: (E, D, F) of the dtype of the rows.
      sizes: (E,) int32, rows of each group.
    """
    return jax.lax.platform_dependent(
        rows, kernels, sizes, tpu=jax.lax.ragged_dot, default=_blocked_product
    )


@jax.custom_vjp
def _blocked_product(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    starts = jnp.cumsum(sizes) - sizes
    padded = _pad(rows)

    def group(products, kernel, start, size):
        def block(i, products):
            # The end of a group's last block is overwritten by the next group.
            at = start + i * BLOCK
            product = jnp.dot(_block(padded, at), kernel, preferred_element_type=jnp.float32)
            product = product.astype(products.dtype)
            return jax.lax.dynamic_update_slice(products, product, (at, 0))

        return jax.lax.fori_loop(0, _num_blocks(size), block, products)

    zeros = jnp.zeros_like(rows, shape=(len(padded), kernels.shape[2]))
    products, _ = jax.lax.scan(
        lambda products, args: (group(products, *args), None), zeros, (kernels, starts, sizes)
    )
    return products[: len(rows)]


def _blocked_product_forward(rows, kernels, sizes):
    return _blocked_product(rows, kernels, sizes), (rows, kernels, sizes)


def _blocked_product_backward(saved, gradient):
    rows, kernels, sizes = saved
    return (
        _blocked_product(gradient, jnp.swapaxes(kernels, 1, 2), sizes),
        _blocked_outer_products(rows, gradient, sizes).astype(kernels.dtype),
        np.zeros(sizes.shape, jax.dtypes.float0),
    )


_blocked_product.defvjp(_blocked_product_forward, _blocked_product_backward)


def _blocked_outer_products(
    rows: Float[Array, "R D"], others: Float[Array, "R F"], sizes: Int[Array, " E"]
) -> Float[Array, "E D F"]:
    """Sums over the rows of each group the outer products of `rows` and `others`, float32."""
    starts = jnp.cumsum(sizes) - sizes
    rows, others = _pad(rows), _pad(others)
    zeros = jnp.zeros_like(rows, jnp.float32, shape=(rows.shape[1], others.shape[1]))

    def group(start, size):
        def block(i, total):
            at = start + i * BLOCK
            own = (i * BLOCK + jnp.arange(BLOCK) < size)[:, None]
            # What lies beyond the group may not even be finite.
            a, b = (jnp.where(own, _block(x, at), 0) for x in (rows, others))
            return total + jnp.dot(a.T, b, preferred_element_type=jnp.float32)

        return jax.lax.fori_loop(0, _num_blocks(size), block, zeros)

    return jax.lax.scan(lambda _, args: (None, group(*args)), None, (starts, sizes))[1]


def _num_blocks(size: jax.Array) -> jax.Array:
    return (size + BLOCK - 1) // BLOCK


def _pad(rows: jax.Array) -> jax.Array:
    return jnp.pad(rows, ((0, BLOCK), (0, 0)))


def _block(rows: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(rows, (at, 0), (BLOCK, rows.shape[1]))
