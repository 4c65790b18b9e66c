"""Attention and grouped products on a GPU, forward and backward; see `benchmarks.gpu`."""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.grouped_product import even, ragged_outer_products, skewed
from vmoe_prc.models import grouped_matmul
from vmoe_prc.models.attention import attention
from vmoe_prc.models.tiles import TILE, Tiles

# Images, tokens, heads, size of a head: S/32 and B/16 at 224 px; tokens by whole patches, too.
ATTENTION = [(1024, 50, 8, 64), (1024, 49, 8, 64), (256, 196, 12, 64), (256, 197, 12, 64)]
# Rows, width, MLP width, experts: S/32 with 1,024 images and B/16 with 128, K = 2.
EXPERTS = [(102_400, 512, 2048, 8), (50_432, 768, 3072, 8)]
CALLS = 10


def attention_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields times and errors of attention as the model calls it, and by XLA."""
    arms = {
        "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
        "model": attention,
    }
    for shape in ATTENTION:
        keys = jax.random.split(jax.random.key(0), 4)
        operands = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
        float32 = [x.astype(jnp.float32) for x in operands]
        exact = jax.jit(_pull_back(arms["xla"]))(*float32)
        compiled = {
            name: jax.jit(_pull_back(function)).lower(*operands).compile()
            for name, function in arms.items()
        }
        times = _times(compiled, operands, args.repetitions, "xla")
        for name, program in compiled.items():
            yield {
                "shape": shape,
                "attention": name,
                "cudnn_calls": program.as_text().count("__cudnn$fmha"),
                **times[name],
                "errors": _errors(program(*operands), exact),
            }


def expert_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields times and errors of grouped products, relative to one batched product."""
    for num_rows, width, mlp_dim, groups in EXPERTS:
        sizes = {
            "even": even(num_rows, groups),
            "skewed": skewed(num_rows, groups),
            "one group": np.array([0, num_rows, *[0] * (groups - 2)]),
        }
        for name, own in sizes.items():
            tiles = Tiles.create(jnp.asarray(own, jnp.int32), num_rows)
            yield from _products(args, own, tiles, width, mlp_dim, {"sizes": name})


def _products(
    args: argparse.Namespace,
    sizes: np.ndarray,
    tiles: Tiles,
    width: int,
    mlp_dim: int,
    labels: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    groups, num_rows = len(sizes), len(tiles.group) * TILE
    keys = jax.random.split(jax.random.key(0), 3)
    used = np.zeros((num_rows, 1), np.bool_)
    for first, size in zip(np.asarray(tiles.first), sizes, strict=True):
        used[first * TILE : first * TILE + size] = True
    rows = jnp.where(used, jax.random.normal(keys[0], (num_rows, width)), 0).astype(jnp.bfloat16)
    kernels = jax.random.normal(keys[1], (groups, width, mlp_dim), jnp.bfloat16)
    cotangent = jnp.where(used, jax.random.normal(keys[2], (num_rows, mlp_dim)), 0)
    cotangent = cotangent.astype(jnp.bfloat16)

    def batched(rows, kernels, cotangent):
        """The same work where all groups have as many rows, and it is known."""

        def multiply(rows, kernels):
            rows = rows[: sum(sizes) // groups * groups].reshape(groups, -1, width)
            return jnp.einsum("EBD,EDF->EBF", rows, kernels)

        out, pull = jax.vjp(multiply, rows, kernels)
        return out, *pull(cotangent[: out.shape[0] * out.shape[1]].reshape(out.shape))

    def arm(name):
        def run(rows, kernels, cotangent):
            product = getattr(grouped_matmul, f"_{name}_product")
            outer = (
                ragged_outer_products
                if name == "ragged"
                else getattr(grouped_matmul, f"_{name}_outer_products")
            )
            transposed = jnp.swapaxes(kernels, 1, 2)
            return (
                product(rows, kernels, tiles),
                product(cotangent, transposed, tiles),
                outer(rows, cotangent, tiles).astype(kernels.dtype),
            )

        return run

    arms: dict[str, Callable[..., Any]] = {"one batched product": batched}
    names = ["hopper", "batched", "ragged"] + (["looped"] if labels["sizes"] == "even" else [])
    arms |= {name: arm(name) for name in names}
    operands = rows, kernels, cotangent
    compiled = {}
    for name, function in arms.items():
        try:
            compiled[name] = jax.jit(function).lower(*operands).compile()
        except Exception as error:
            # A kernel that does not compile on this GPU is a result.
            yield labels | {"product": name, "error": f"{type(error).__name__}: {error}"[:1000]}
    exact = None
    if "batched" in compiled:
        exact = compiled["batched"](*operands)
    times = _times(compiled, operands, args.repetitions, "one batched product")
    flops = 3 * 2 * int(sum(sizes)) * width * mlp_dim
    for name, program in compiled.items():
        row = labels | {"rows": int(sum(sizes)), "widths": (width, mlp_dim), "product": name}
        row |= times[name] | {"TFLOP/s": flops / times[name]["seconds"] / 1e12}
        row["temporary_GiB"] = program.memory_analysis().temp_size_in_bytes / 2**30
        if name in ("hopper", "ragged", "looped") and exact is not None:
            row["errors"] = _errors(program(*operands), exact)
        yield row


def _pull_back(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def run(query, key, value, cotangent):
        out, pull = jax.vjp(function, query, key, value)
        return out, *pull(cotangent)

    return run


def _times(
    compiled: dict[str, jax.stages.Compiled], operands: Any, repetitions: int, baseline: str
) -> dict[str, dict[str, float]]:
    def several(program):
        def run():
            for _ in range(CALLS - 1):
                program(*operands)
            return program(*operands)

        return run

    functions = {name: several(program) for name, program in compiled.items()}
    times = timing.compare(timing.take_turns(functions, repetitions), baseline)
    return {
        name: {"seconds": row["seconds"] / CALLS, "ratio": row["ratio"]}
        for name, row in times.items()
    }


def _errors(found: Any, exact: Any) -> list[float]:
    """Returns |found - exact| / |exact| of each result, by the norm of all its numbers."""

    @jax.jit
    def relative(a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel())

    return [float(relative(a, b)) for a, b in zip(found, exact, strict=True)]
