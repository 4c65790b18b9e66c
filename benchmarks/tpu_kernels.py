"""Pallas kernels for TPUs against XLA's own instructions, by their compiled programs.

    python -m benchmarks.tpu_kernels --target=v5e:2x2

Attention and the grouped product of `dropless`, forward and backward on one chip, in bfloat16. No
TPU is needed, but its compiler, `pip install "libtpu==0.0.42.*"`: nothing is run. `temporary_MiB`
is the memory that a program needs besides operands and results, `GB` what it moves by the
compiler's account, where a kernel counts as what its author says, and `memory_ms` the time that the
chip needs at least to move that.

`flash` pads the tokens to a multiple of 128, as its blocks are; megablox takes tiles of rows,
inner and outer width.
"""

import argparse
import functools
import importlib
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.grouped_product import ragged_outer_products
from vmoe_prc.compile import hlo
from vmoe_prc.compile.targets import Target, devices_of, parse_target
from vmoe_prc.models import grouped_matmul
from vmoe_prc.models.tiles import TILE, Tiles

# Images, tokens, heads, size of a head, on a device: S/32, B/16 and B/16 at 384 px.
ATTENTION = [(64, 50, 8, 64), (64, 197, 12, 64), (16, 577, 12, 64)]
# Rows, width, MLP width, experts, K = 2: S/32 with 67 images, B/16 with 64, H/14 with 48, so that
# tiles of 512 rows fit.
EXPERTS = [(6_700, 512, 2048, 8), (25_216, 768, 3072, 8), (24_672, 1280, 5120, 32)]
TILINGS = [(128, 512, 1024), (512, 512, 512), (512, 768, 1024)]
MULTIPLE = 128


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="v5e:2x2", help="a slice of TPUs")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file for all results")
    args = parser.parse_args(argv)
    target = parse_target(args.target)
    timing.report(args, [*attention_rows(target), *expert_rows(target)])


def attention_rows(target: Target) -> Iterator[dict[str, Any]]:
    """Yields what attention needs, by XLA and by the flash attention that JAX ships."""
    arms = {
        "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
        "flash": flash,
    }
    for shape in ATTENTION:
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for name, function in arms.items():
            yield {"of": "attention", "shape": shape, "by": name} | costs(
                target, _pull_back(function), x, x, x, x
            )


def flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention over (N, T, H, Dh) by JAX's Pallas kernel, with tokens of padding left out."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    images, tokens, _, head_size = query.shape
    missing = -tokens % MULTIPLE

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    segments = jnp.pad(jnp.ones((images, tokens), jnp.int32), ((0, 0), (0, missing)))
    outputs = pallas.flash_attention(
        *map(padded, (query, key, value)),
        segment_ids=pallas.SegmentIds(segments, segments),
        sm_scale=head_size**-0.5,
    )
    return outputs.transpose(0, 2, 1, 3)[:, :tokens]


def expert_rows(target: Target) -> Iterator[dict[str, Any]]:
    """Yields what a grouped product needs, as the model does it, by XLA, and by megablox."""
    for num_rows, width, mlp_dim, groups in EXPERTS:
        sizes = jax.ShapeDtypeStruct((groups,), jnp.int32)
        tiles = jax.eval_shape(functools.partial(Tiles.create, num_rows=num_rows), sizes)
        total = len(tiles.group) * TILE
        operands = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16)
            for shape in ((total, width), (groups, width, mlp_dim), (total, mlp_dim))
        ]
        arms: dict[str, Callable[..., Any]] = {"model": _model, "ragged_dot": _ragged_dot}
        arms |= {f"megablox {tiling}": functools.partial(_megablox, tiling) for tiling in TILINGS}
        for name, function in arms.items():

            def run(rows, kernels, cotangent, sizes, function=function, num_rows=num_rows):
                tiles = Tiles.create(sizes, num_rows)
                product, outer = function(tiles)
                transposed = jnp.swapaxes(kernels, 1, 2)
                return (
                    product(rows, kernels),
                    product(cotangent, transposed),
                    outer(rows, cotangent).astype(kernels.dtype),
                )

            row = {"of": "grouped product", "shape": (num_rows, width, mlp_dim, groups), "by": name}
            yield row | costs(target, run, *operands, sizes)


def _model(tiles):
    return (
        functools.partial(grouped_matmul._ragged_product, tiles=tiles),
        functools.partial(grouped_matmul._tpu_outer_products, tiles=tiles),
    )


def _ragged_dot(tiles):
    return _model(tiles)[0], functools.partial(ragged_outer_products, tiles=tiles)


def _megablox(tiling, tiles):
    # Its package has a function of the same name.
    megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    sizes = tiles.count * TILE

    def product(rows, kernels):
        return megablox.gmm(rows, kernels, sizes, rows.dtype, tiling)

    def outer(rows, others):
        return megablox.tgmm(rows.swapaxes(0, 1), others, sizes, jnp.float32, tiling)

    return product, outer


def costs(target: Target, function: Callable[..., Any], *operands: Any) -> dict[str, Any]:
    """Compiles a function for one chip of a target, and reads what it needs."""
    mesh = jax.sharding.Mesh(devices_of(target)[:1], ("x",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    operands = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), operands
    )
    columns = "temporary_MiB", "GB", "GFLOP", "memory_ms", "kernels"
    try:
        traced = jax.jit(function).trace(*operands)
        compiled = traced.lower(lowering_platforms=(target.chip.platform,)).compile()
    except Exception as error:
        # A kernel that does not compile for this chip is a result.
        reason = " ".join(str(error).split())[:100]
        return dict.fromkeys(columns) | {"error": f"{type(error).__name__}: {reason}"}
    costs = compiled.cost_analysis()
    moved = costs.get("bytes accessed", 0.0)
    values = (
        compiled.memory_analysis().temp_size_in_bytes / 2**20,
        moved / 1e9,
        costs.get("flops", 0.0) / 1e9,
        1e3 * moved / (target.chip.bandwidth or math.inf),
        hlo.custom_calls(hlo.text_of(compiled)).get("tpu_custom_call", 0),
    )
    return dict(zip(columns, values, strict=True)) | {"error": ""}


def _pull_back(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def run(query, key, value, cotangent):
        out, pull = jax.vjp(function, query, key, value)
        return out, *pull(cotangent)

    return run


if __name__ == "__main__":
    main()
