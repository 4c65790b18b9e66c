"""Grouped matrix products for NVIDIA Hopper, in Pallas: wgmma from tiles that TMA brings.

`tiles` says what the arguments are; widths are multiples of `BLOCK`. Each block of a kernel
computes one tile of the result; tiles that are not in use are zeroed and cost no product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from vmoe_prc.arrays import Array, Float, Int
from vmoe_prc.models.tiles import TILE

# The accumulator in registers, whose name JAX does not list among its exports.
_Accumulator = gpu.ACC  # pyright: ignore[reportPrivateImportUsage]
# Columns of a block of the result, and how far a step of the sum goes.
BLOCK, DEPTH = 128, 64
# Steps whose operands are in shared memory at once: 4 x 32 KiB of 227.
STAGES = 4


def product(
    rows: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    group: Int[Array, " T"],
    interpret: Any = None,
) -> Float[Array, "R F"]:
    """Multiplies each tile of rows by the matrix of its group.

    Args:
      rows: (R, D), R = T * `TILE`.
      kernels: (E, D, F).
      group: (T,) int32, group of each tile; E for none.
      interpret: Parameters of Pallas' interpreter, to run without a GPU.
    """
    (num_rows, depth), width, dtype = rows.shape, kernels.shape[2], rows.dtype

    def kernel(group_ref, rows_ref, kernels_ref, out_ref, block):
        tile, column = jax.lax.axis_index("tile"), jax.lax.axis_index("column")
        own = group_ref[tile]

        def accumulate(total):
            @pl.when(own < len(kernels))
            def _():
                gpu.emit_pipeline(
                    lambda _, a, b: gpu.wgmma(total, a, b),
                    grid=(depth // DEPTH,),
                    in_specs=[
                        _spec((TILE, DEPTH), dtype, lambda i: (tile, i)),
                        _spec((DEPTH, BLOCK), dtype, lambda i: (i, column)),
                    ],
                    max_concurrent_steps=STAGES,
                )(rows_ref, kernels_ref.at[own])

            return total[...]

        block[...] = pl.run_scoped(accumulate, _Accumulator((TILE, BLOCK))).astype(dtype)
        _write(block, out_ref.at[pl.ds(tile * TILE, TILE), pl.ds(column * BLOCK, BLOCK)])

    return _call(
        kernel,
        (num_rows, width),
        dtype,
        {"tile": num_rows // TILE, "column": width // BLOCK},
        interpret,
    )(group, rows, kernels)


def outer_products(
    rows: Float[Array, "R D"],
    others: Float[Array, "R F"],
    first: Int[Array, " E"],
    count: Int[Array, " E"],
    interpret: Any = None,
) -> Float[Array, "E D F"]:
    """Sums the outer products of `rows` and `others` over the tiles of each group.

    Args:
      rows: (R, D).
      others: (R, F).
      first: (E,) int32, first tile of each group.
      count: (E,) int32, number of its tiles.
      interpret: Parameters of Pallas' interpreter, to run without a GPU.

    Returns:
      (E, D, F) of the dtype of the rows; the sums are float32.
    """
    height, width, dtype = rows.shape[1], others.shape[1], rows.dtype

    def kernel(first_ref, count_ref, rows_ref, others_ref, out_ref, block):
        own, row, column = (jax.lax.axis_index(name) for name in ("group", "row", "column"))
        start, steps = (x[own] * (TILE // DEPTH) for x in (first_ref, count_ref))

        def accumulate(total):
            @pl.when(steps > 0)
            def _():
                gpu.emit_pipeline(
                    lambda _, a, b: gpu.wgmma(total, a.transpose((1, 0)), b),
                    grid=(steps,),
                    in_specs=[
                        _spec((DEPTH, BLOCK), dtype, lambda i: (start + i, row)),
                        _spec((DEPTH, BLOCK), dtype, lambda i: (start + i, column)),
                    ],
                    max_concurrent_steps=STAGES,
                )(rows_ref, others_ref)

            return total[...]

        block[...] = pl.run_scoped(accumulate, _Accumulator((BLOCK, BLOCK))).astype(dtype)
        _write(block, out_ref.at[own, pl.ds(row * BLOCK, BLOCK), pl.ds(column * BLOCK, BLOCK)])

    return _call(
        kernel,
        (len(first), height, width),
        dtype,
        {"group": len(first), "row": height // BLOCK, "column": width // BLOCK},
        interpret,
    )(first, count, rows, others)


def _call(body: Any, shape: tuple[int, ...], dtype: Any, grid: dict[str, int], interpret: Any):
    """Makes a kernel with a grid of named axes and a block of shared memory for its result."""
    return gpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(shape, dtype),
        scratch_types=[gpu.SMEM((TILE, BLOCK), dtype, transforms=_layout(BLOCK, dtype))],
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        interpret=interpret,
    )


def _spec(shape: tuple[int, int], dtype: Any, index: Any) -> Any:
    return gpu.BlockSpec(shape, index, delay_release=1, transforms=_layout(shape[1], dtype))


def _layout(columns: int, dtype: Any) -> tuple[Any, ...]:
    """Returns the layout in shared memory that wgmma and TMA need for a block of columns."""
    item = jnp.dtype(dtype).itemsize
    swizzle = gpu.find_swizzle(columns * item * 8)
    return gpu.TilingTransform((8, swizzle // item)), gpu.SwizzleTransform(swizzle)


def _write(block: Any, target: Any) -> None:
    """Copies a block of shared memory to the result."""
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(block, target)
    gpu.wait_smem_to_gmem(0, wait_read_only=True)
