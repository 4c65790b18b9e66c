"""Sends as many rows to each device as it gets, known only at run time, by a ragged all-to-all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.runtime.mesh import vary

AXIS = "expert"


def exchange(
    rows: Float[Array, "R D"], sizes: Int[Array, "P P"], num_results: int, back: bool = False
) -> jax.Array:
    """Exchanges rows among the P devices of a row of the mesh; called on each of them.

    Args:
      rows: (R, D), in the order of the devices that they go to; those past all sizes are not sent.
      sizes: (P, P) int32; `sizes[s, d]` rows go from device s to device d.
      num_results: R2, the rows that a device has room for.
      back: Whether rows go back, from d to s: `exchange(exchange(x, sizes, n), sizes, len(x),
        back=True)` are the rows of `x` that were sent.

    Returns:
      (R2, D), in the order of the devices that they come from; zero past all sizes.
    """
    return jnp.asarray(_exchange(rows, sizes, num_results, back))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _exchange(rows: Array, sizes: Array, num_results: int, back: bool) -> jax.Array:
    to_here = jnp.cumsum(sizes, axis=1, dtype=jnp.int32) - sizes
    from_here = jnp.cumsum(sizes, axis=0, dtype=jnp.int32) - sizes
    if back:
        sizes, to_here, from_here = sizes.T, from_here.T, to_here.T
    device = jax.lax.axis_index(AXIS)
    results = vary(jnp.zeros((num_results, *rows.shape[1:]), rows.dtype))
    return jax.lax.platform_dependent(
        rows,
        results,
        *(x[device] for x in (to_here, sizes, from_here)),
        sizes[:, device],
        cpu=_padded,
        default=functools.partial(jax.lax.ragged_all_to_all, axis_name=AXIS),
    )


def _forward(rows, sizes, num_results, back):
    return _exchange(rows, sizes, num_results, back), (rows.shape[0], sizes)


def _backward(num_results, back, saved, gradient):
    del num_results
    num_rows, sizes = saved
    gradient = _exchange(gradient, sizes, num_rows, not back)
    return gradient, np.zeros(sizes.shape, jax.dtypes.float0)


_exchange.defvjp(_forward, _backward)


def _padded(
    rows: Array,
    results: jax.Array,
    starts: Array,
    sizes: Array,
    starts_there: Array,
    sizes_here: Array,
) -> jax.Array:
    """Does what `jax.lax.ragged_all_to_all` does, which XLA does not have for CPUs."""
    index = jnp.arange(rows.shape[0])
    parts = jnp.asarray(rows).at[starts[:, None] + index].get(mode="fill", fill_value=0)
    parts, starts_here = (
        jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True) for x in (parts, starts_there)
    )
    places = jnp.where(index < sizes_here[:, None], starts_here[:, None] + index, len(results))
    del sizes
    return results.at[places].set(parts, mode="drop")
