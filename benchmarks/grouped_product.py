"""A grouped matrix product, forward and backward, against a batched one of as many rows.

    python -m benchmarks.grouped_product --rows=4800 --groups=8,32

`batched` has the same number of rows in every group and uses it. `ragged_dot` is JAX's,
`in_tiles` ours, with the copies into tiles and back that dropless experts need anyway. In the
skewed case the first group has half of all rows.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.programs import compile_program
from vmoe_prc.models.grouped_matmul import grouped_product
from vmoe_prc.models.tiles import TILE, Tiles

BATCHED = "batched"


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--rows", type=int, default=4800, help="a multiple of the groups")
    parser.add_argument("--groups", type=timing.integers, default=[8, 32])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--out-width", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    timing.report(args, [row for groups in args.groups for row in measure(args, groups)])


def measure(args: argparse.Namespace, groups: int) -> list[dict[str, Any]]:
    """Times the products of one number of groups in turns."""
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (args.rows, args.width), args.dtype)
    kernels = jax.random.normal(keys[1], (groups, args.width, args.out_width), args.dtype)
    cotangent = jax.random.normal(keys[2], (args.rows, args.out_width), args.dtype)

    def batched(rows, kernels, _):
        return (rows.reshape(groups, -1, args.width) @ kernels).reshape(cotangent.shape)

    sizes = {"even": even(args.rows, groups), "skewed": skewed(args.rows, groups)}
    arms = {BATCHED: (batched, sizes["even"])}
    for function in (jax.lax.ragged_dot, in_tiles):
        arms |= {f"{function.__name__}, {name}": (function, s) for name, s in sizes.items()}
    programs = {}
    for name, (function, own) in arms.items():

        def pull_back(rows, kernels, sizes, cotangent, function=function):
            return jax.vjp(lambda *x: function(*x, sizes), rows, kernels)[1](cotangent)

        own = jnp.asarray(own, jnp.int32)
        programs[name] = compile_program(pull_back, rows, kernels, own, cotangent).run
    times = timing.compare(timing.take_turns(programs, args.repetitions), BATCHED)
    columns = "seconds", "ratio", "low", "high", "cpu_ratio"
    return [
        {"groups": groups, "product": name} | {column: row[column] for column in columns}
        for name, row in times.items()
    ]


def in_tiles(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Copies sorted rows into the tiles of their groups, multiplies, and copies back."""
    tiles = Tiles.create(sizes, len(rows))
    shift = tiles.first * TILE - (jnp.cumsum(sizes) - sizes)
    place = jnp.arange(len(rows)) + jnp.repeat(shift, sizes, total_repeat_length=len(rows))
    padded = jnp.zeros_like(rows, shape=(len(tiles.group) * TILE, rows.shape[1]))
    return grouped_product(padded.at[place].set(rows), kernels, tiles)[place]


def ragged_outer_products(rows: jax.Array, others: jax.Array, tiles: Tiles) -> jax.Array:
    """Sums outer products by group with XLA's instruction, (E, D, F) float32."""
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    sizes = tiles.count * TILE
    return jax.lax.ragged_dot_general(
        rows, others, sizes, dimensions, preferred_element_type=jnp.float32
    )


def even(rows: int, groups: int) -> np.ndarray:
    """As many rows for each group."""
    return np.full(groups, rows // groups)


def skewed(rows: int, groups: int) -> np.ndarray:
    """Half of the rows for the first group, the others evenly spread."""
    rest = (rows - rows // 2) // (groups - 1)
    return np.array([rows - rest * (groups - 1), *[rest] * (groups - 1)])


if __name__ == "__main__":
    main()
