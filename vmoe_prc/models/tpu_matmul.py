"""Grouped outer products for TPUs, in Pallas.

XLA has an instruction for products of rows with the matrices of their groups, but computes sums of
outer products by group for all rows and each group: E times the operations, compiled for a v5e
(libtpu 0.0.42.1). This kernel computes the tiles that are in use, once.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.models.tiles import TILE
from vmoe_prc.runtime.mesh import vary

# Rows and columns of a block of the result: sums of 4 MiB, and twice the block in the dtype of the
# rows, are at most 12 of the 16 MiB of a v5e.
BLOCK = 1024, 1024


def outer_products(
    rows: Float[Array, "R D"],
    others: Float[Array, "R F"],
    group: Int[Array, " T"],
    count: Int[Array, " E"],
    interpret: bool = False,
) -> Float[Array, "E D F"]:
    """Sums the outer products of `rows` and `others` over the tiles of each group.

    Args:
      rows: (R, D), R = T * `TILE`.
      others: (R, F).
      group: (T,) int32, group of each tile, sorted; E for none.
      count: (E,) int32, number of tiles of each group.
      interpret: Whether to run in Pallas' interpreter, without a TPU.

    Returns:
      (E, D, F) of the dtype of the rows; the sums are float32.
    """
    num_groups, num_tiles = len(count), len(group)
    shape = rows.shape[1], others.shape[1]
    block = tuple(map(min, shape, BLOCK))
    # Says, too, on which devices of a mesh the sums differ, which JAX asks of a kernel.
    out_shape = jax.eval_shape(lambda: vary(jnp.zeros((num_groups, *shape), rows.dtype)))
    used = jnp.sum(count, keepdims=True)
    # Tiles that are not in use stay at the last one that is, so that nothing is fetched for them.
    place = jnp.minimum(jnp.arange(num_tiles), jnp.maximum(used - 1, 0))
    own = jnp.minimum(group[place], num_groups - 1)

    def kernel(used_ref, place_ref, own_ref, rows_ref, others_ref, out_ref, sum_ref):
        # The last axis of the grid is the innermost loop: a block of the result stays in place
        # while the tiles of its group pass.
        tile, last = pl.program_id(2), num_tiles - 1

        @pl.when((tile == 0) | (own_ref[tile] != own_ref[jnp.maximum(tile - 1, 0)]))
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        @pl.when(tile < used_ref[0])
        def _():
            sum_ref[...] += jax.lax.dot_general(
                rows_ref[...],
                others_ref[...],
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )

        @pl.when((tile == last) | (own_ref[tile] != own_ref[jnp.minimum(tile + 1, last)]))
        def _():
            out_ref[0] = sum_ref[...].astype(out_ref.dtype)

    sums = pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(*map(pl.cdiv, shape, block), num_tiles),
            in_specs=[
                pl.BlockSpec((TILE, block[0]), lambda i, j, t, used, place, own: (place[t], i)),
                pl.BlockSpec((TILE, block[1]), lambda i, j, t, used, place, own: (place[t], j)),
            ],
            out_specs=pl.BlockSpec((1, *block), lambda i, j, t, used, place, own: (own[t], i, j)),
            scratch_shapes=[tpu.VMEM(block, jnp.float32)],
        ),
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * len(rows) * shape[0] * shape[1],
            bytes_accessed=sum(
                x.size * x.dtype.itemsize * pl.cdiv(shape[1 - i], block[1 - i])
                for i, x in enumerate((rows, others))
            )
            + out_shape.size * out_shape.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
    )(used, place, own, rows, others)
    # No tile of an empty group has written its block.
    return jnp.where((count > 0)[:, None, None], sums, 0)
