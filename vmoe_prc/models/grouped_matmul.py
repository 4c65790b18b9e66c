"""Matrix products of rows that are sorted by group with the matrices of their groups.

Rows come in tiles of `TILE`, and each tile belongs to one group: the first row of a group is
the first of a tile, and the rows between its last one and the end of its tile are zero. A
kernel then needs no masks, and only tiles in use cost work, regardless of the sizes.

* TPU: XLA's own instruction, `jax.lax.ragged_dot`, and for outer products a kernel of ours, see
  `tpu_matmul`.
* NVIDIA Hopper in half precision: a kernel of ours, see `hopper_matmul`.
* Other GPUs: one batched product of all tiles, each with a copy of its group's matrix.
* CPU: a loop over the tiles in use. On a GPU such a loop would wait for the host at each turn.
"""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.arrays import Array, Float
from vmoe_prc.models import tpu_matmul
from vmoe_prc.models.tiles import TILE, Tiles
from vmoe_prc.runtime.mesh import vary

HOPPER = "hopper"
_HOPPER_DEVICE = re.compile(r"NVIDIA (H100|H200|H800|GH200)\b")


@jax.custom_vjp
def grouped_product(
    rows: Float[Array, "R D"], kernels: Float[Array, "E D F"], tiles: Tiles
) -> Float[Array, "R F"]:
    """Multiplies each row by the matrix of its group; sums are float32.

    Args:
      rows: (R, D), R = T * `TILE`; zero where a group has no row, anything in tiles that are
        not in use.
      kernels: (E, D, F) of the dtype of the rows.
      tiles: The tiles of the groups.

    Returns:
      (R, F) of the dtype of the rows; zero in tiles that are not in use.
    """
    return _dispatch(_PRODUCTS, rows, kernels, tiles)


def _forward(rows, kernels, tiles):
    return grouped_product(rows, kernels, tiles), (rows, kernels, tiles)


def _backward(saved, gradient):
    rows, kernels, tiles = saved
    return (
        _dispatch(_PRODUCTS, gradient, jnp.swapaxes(kernels, 1, 2), tiles),
        _dispatch(_OUTER_PRODUCTS, rows, gradient, tiles),
        jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tiles),
    )


grouped_product.defvjp(_forward, _backward)


def _dispatch(
    implementations: Mapping[str, Callable[..., Array]], a: Array, b: Array, tiles: Tiles
) -> Array:
    """Calls the implementation for the platform that the program is compiled for."""
    if _is_for_hopper(a, b):
        return implementations[HOPPER](a, b, tiles)
    others = {name: f for name, f in implementations.items() if name != HOPPER}
    return jax.lax.platform_dependent(a, b, tiles, **others)


def _is_for_hopper(*matrices: Array) -> bool:
    """Whether the devices are Hopper GPUs, and its kernels take matrices like these."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or not _HOPPER_DEVICE.match(device.device_kind):
        return False
    from vmoe_prc.models.hopper_matmul import BLOCK

    widths = [width for x in matrices for width in (x.shape[-1], *x.shape[1:-1])]
    half = matrices[0].dtype in (jnp.bfloat16, jnp.float16)
    return half and all(width % BLOCK == 0 for width in widths)


def _split(rows: jax.Array) -> jax.Array:
    return rows.reshape(-1, TILE, rows.shape[-1])


def _looped_product(rows: jax.Array, kernels: jax.Array, tiles: Tiles) -> jax.Array:
    def multiply(tile, products):
        part = jax.lax.dynamic_index_in_dim(_split(rows), tile, keepdims=False)
        kernel = jax.lax.dynamic_index_in_dim(kernels, tiles.group[tile], keepdims=False)
        product = jnp.dot(part, kernel, preferred_element_type=jnp.float32).astype(rows.dtype)
        return jax.lax.dynamic_update_index_in_dim(products, product, tile, 0)

    zeros = jnp.zeros_like(_split(rows), shape=(tiles.group.shape[0], TILE, kernels.shape[2]))
    products = jax.lax.fori_loop(0, jnp.sum(tiles.count), multiply, zeros)
    return products.reshape(rows.shape[0], -1)


def _looped_outer_products(rows: jax.Array, others: jax.Array, tiles: Tiles) -> jax.Array:
    rows, others = _split(rows), _split(others)
    zeros = jnp.zeros_like(rows, jnp.float32, shape=(rows.shape[-1], others.shape[-1]))

    def total(_, group):
        first, count = group

        def add(i, total):
            a, b = (
                jax.lax.dynamic_index_in_dim(x, first + i, keepdims=False) for x in (rows, others)
            )
            return total + jnp.dot(a.T, b, preferred_element_type=jnp.float32)

        return None, jax.lax.fori_loop(0, count, add, zeros)

    return jax.lax.scan(total, None, (tiles.first, tiles.count))[1].astype(rows.dtype)


def _batched_product(rows: jax.Array, kernels: jax.Array, tiles: Tiles) -> jax.Array:
    own = kernels.at[tiles.group].get(mode="clip")
    products = jnp.einsum("TBD,TDF->TBF", _split(rows), own, preferred_element_type=jnp.float32)
    return jnp.where(tiles.in_use, products, 0).astype(rows.dtype).reshape(rows.shape[0], -1)


def _batched_outer_products(rows: jax.Array, others: jax.Array, tiles: Tiles) -> jax.Array:
    rows, others = (jnp.where(tiles.in_use, _split(x), 0) for x in (rows, others))
    parts = jnp.einsum("TBD,TBF->TDF", rows, others, preferred_element_type=jnp.float32)
    own = (tiles.group == jnp.arange(len(tiles.count))[:, None]).astype(jnp.float32)
    return jnp.einsum("ET,TDF->EDF", own, parts).astype(rows.dtype)


def _ragged_product(rows: jax.Array, kernels: jax.Array, tiles: Tiles) -> jax.Array:
    if kernels.shape[0] == 1:
        kernels = jnp.concatenate([kernels, jnp.zeros_like(kernels)])
    products = jax.lax.ragged_dot(
        rows, kernels, _sizes_of_several(tiles), preferred_element_type=jnp.float32
    )
    # XLA leaves rows beyond the last group undefined.
    return (
        jnp.where(tiles.in_use, _split(products), 0).astype(rows.dtype).reshape(rows.shape[0], -1)
    )


def _tpu_outer_products(
    rows: jax.Array, others: jax.Array, tiles: Tiles, interpret: bool = False
) -> Array:
    return tpu_matmul.outer_products(rows, others, tiles.group, tiles.count, interpret)


def _sizes_of_several(tiles: Tiles) -> jax.Array:
    """Returns the rows of the groups, with an empty group after a single one.

    The compiler for TPUs (libtpu 0.0.42.1) ends with an internal error where there is one group.
    """
    sizes = tiles.count * TILE
    return jnp.pad(sizes, (0, 1)) if len(tiles.count) == 1 else sizes


def _hopper_product(rows: jax.Array, kernels: jax.Array, tiles: Tiles) -> Array:
    from vmoe_prc.models import hopper_matmul

    return vary(hopper_matmul.product(rows, kernels, tiles.group))


def _hopper_outer_products(rows: jax.Array, others: jax.Array, tiles: Tiles) -> Array:
    from vmoe_prc.models import hopper_matmul

    products = hopper_matmul.outer_products(rows, others, tiles.first, tiles.count)
    return vary(products)


_PRODUCTS = {
    "default": _looped_product,
    "cuda": _batched_product,
    "rocm": _batched_product,
    "tpu": _ragged_product,
    HOPPER: _hopper_product,
}
_OUTER_PRODUCTS = {
    "default": _looped_outer_products,
    "cuda": _batched_outer_products,
    "rocm": _batched_outer_products,
    "tpu": _tpu_outer_products,
    HOPPER: _hopper_outer_products,
}
