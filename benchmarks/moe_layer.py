"""A MoE layer, forward and backward, against the two grouped matrix products it must do.

    python -m benchmarks.moe_layer --experts=8,32 --k=1,2 --group-sizes=400,1160

`to_products` compares with the two products only, on exactly the rows that were chosen, and
`to_experts` with the experts' whole MLPs on these rows: what is above 1 there is routing,
moving rows, and the free rows of the buffers. `to_mlp` compares with one MLP on all of these rows,
the same operations with 1/E of the weights: what the experts themselves have above 1 there is the
traffic of weights and their gradients, and no way of dispatch can be below.
"""

import argparse
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.programs import ALL_METHODS, compile_program
from vmoe_prc.models.moe import MlpBlock, MlpMoeBlock

Shape = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, repetitions=5)
    parser.add_argument("--group-sizes", type=timing.integers, default=[400, 1160])
    parser.add_argument("--experts", type=timing.integers, default=[8, 32])
    parser.add_argument("--k", type=timing.integers, default=[1, 2])
    parser.add_argument("--capacity-factors", type=timing.numbers, default=[1.05])
    parser.add_argument("--methods", type=timing.names, default=ALL_METHODS)
    parser.add_argument("--tokens", type=int, default=2400, help="at least; whole groups")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--mlp-dim", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    rows = []
    for group_size, experts, k, capacity in itertools.product(
        args.group_sizes, args.experts, args.k, args.capacity_factors
    ):
        shape = {"group_size": group_size, "experts": experts, "k": k, "capacity": capacity}
        rows += measure(args, shape)
    timing.report(args, rows)


def measure(args: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """Times the layer with each dispatch method, and the products, in turns."""
    num_groups = -(-args.tokens // shape["group_size"])
    x = jax.random.normal(
        jax.random.key(0), (num_groups, shape["group_size"], args.width), args.dtype
    )
    programs = {
        "one MLP": one_mlp(args, shape, x.size),
        "products": products(args, shape, x.size),
        "experts": experts(args, shape, x.size),
    }
    programs |= {method: layer(args, shape, x, method) for method in args.methods}
    times = timing.take_turns({name: p.run for name, p in programs.items()}, args.repetitions)
    to_mlp = timing.compare(times, "one MLP")
    to_products = timing.compare(times, "products")
    to_experts = timing.compare(times, "experts")
    return [
        {
            **shape,
            "method": name,
            "seconds": to_products[name]["seconds"],
            "to_mlp": to_mlp[name]["ratio"],
            "to_products": to_products[name]["ratio"],
            "to_experts": to_experts[name]["ratio"],
            "low": to_experts[name]["low"],
            "high": to_experts[name]["high"],
            "cpu_to_experts": to_experts[name]["cpu_ratio"],
        }
        for name in programs
    ]


def layer(args: argparse.Namespace, shape: Shape, x: jax.Array, method: str):
    """The whole layer: router, dispatch, experts, combination."""
    dispatcher = {"name": method, "capacity_factor": shape["capacity"]}
    module = MlpMoeBlock(
        mlp_dim=args.mlp_dim,
        num_experts=shape["experts"],
        group_size=shape["group_size"],
        router={"num_selected_experts": shape["k"], "dispatcher": dispatcher},
        dtype=args.dtype,
        split_rngs=True,
    )
    keys = {"params": jax.random.key(0), "gating": jax.random.key(1)}
    variables = jax.jit(module.init)(keys, x)
    return gradient(lambda v, x: module.apply(v, x, rngs=keys)[0], variables, x)


def one_mlp(args: argparse.Namespace, shape: Shape, size: int):
    """A dense MLP on as many rows as all experts together have."""
    rows = chosen_rows(args, shape, size)
    x = rows.reshape(-1, rows.shape[-1])
    module = MlpBlock(args.mlp_dim, deterministic=True, dtype=args.dtype)
    return gradient(module.apply, jax.jit(module.init)(jax.random.key(0), x), x)


def experts(args: argparse.Namespace, shape: Shape, size: int):
    """The MLPs of all experts on exactly the chosen rows, evenly spread."""
    x = chosen_rows(args, shape, size)
    module = nn.vmap(
        MlpBlock, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=len(x)
    )(args.mlp_dim, deterministic=True, dtype=args.dtype)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    return gradient(module.apply, variables, x)


def products(args: argparse.Namespace, shape: Shape, size: int):
    """Only the two grouped matrix products."""
    x = chosen_rows(args, shape, size)
    keys = jax.random.split(jax.random.key(0))
    kernels = [
        jax.random.normal(key, (len(x), *dims), args.dtype)
        for key, dims in zip(
            keys, ((args.width, args.mlp_dim), (args.mlp_dim, args.width)), strict=True
        )
    ]
    return gradient(lambda kernels, x: (x @ kernels[0]) @ kernels[1], kernels, x)


def chosen_rows(args: argparse.Namespace, shape: Shape, size: int) -> jax.Array:
    """Made-up inputs (E, chosen tokens / E, D) of the experts."""
    rows = size // args.width * shape["k"] // shape["experts"]
    return jax.random.normal(
        jax.random.key(0), (shape["experts"], rows, args.width), dtype=args.dtype
    )


def gradient(function, variables, x):
    """Compiles the gradients by variables and inputs, for a gradient `x` of the outputs."""

    def pull_back(variables, x, cotangent):
        return jax.vjp(function, variables, x)[1](cotangent)

    cotangent = jnp.ones(jax.eval_shape(function, variables, x).shape, x.dtype)
    return compile_program(pull_back, variables, x, cotangent)


if __name__ == "__main__":
    main()
