"""Grouped products against a product per group, by the implementation of every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.models import grouped_matmul
from vmoe_prc.models.tiles import TILE, Tiles

ROWS = 300
SIZES = {
    "even": [100, 100, 100],
    "more than a tile, none, few": [290, 0, 10],
    "fewer rows than there is room for": [1, 129, 50],
    "nothing at all": [0, 0, 0],
    "whole tiles": [128, 128, 44],
    "a single group": [200],
}


def places(sizes, tiles):
    """Returns the row of each member of the groups."""
    return np.concatenate(
        [
            first * TILE + np.arange(n)
            for first, n in zip(np.asarray(tiles.first), sizes, strict=True)
        ]
    ).astype(int)


def expected(rows, kernels, sizes):
    ends = np.cumsum(sizes)
    parts = [
        rows[end - size : end] @ kernels[e]
        for e, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]
    return jnp.concatenate(parts)


def on_tpu(rows, others, tiles):
    return grouped_matmul._tpu_outer_products(rows, others, tiles, interpret=True)


IMPLEMENTATIONS = {
    "CPU": (grouped_matmul._looped_product, grouped_matmul._looped_outer_products),
    "GPU": (grouped_matmul._batched_product, grouped_matmul._batched_outer_products),
    "TPU": (grouped_matmul._ragged_product, on_tpu),
}


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    """Runs on the CPU what other platforms would."""
    product, outer_products = request.param
    monkeypatch.setitem(grouped_matmul._PRODUCTS, "default", product)
    monkeypatch.setitem(grouped_matmul._OUTER_PRODUCTS, "default", outer_products)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_gradients(sizes, dtype):
    tiles = Tiles.create(jnp.asarray(sizes, jnp.int32), ROWS)
    own = places(sizes, tiles)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (len(tiles.group) * TILE,)
    # What is in tiles that are not in use must reach nothing.
    blank = jnp.repeat(jnp.where(tiles.in_use[:, 0], 0.0, jnp.nan), TILE, axis=0).astype(dtype)
    rows, cotangent = (
        jnp.broadcast_to(blank, (*shape, width))
        .at[own]
        .set(jax.random.normal(key, (len(own), width), dtype))
        for key, width in zip(keys[:2], (8, 16), strict=True)
    )
    kernels = jax.random.normal(keys[2], (len(sizes), 8, 16), dtype)

    @jax.jit
    def run(rows, kernels, cotangent):
        out, pull = jax.vjp(lambda r, k: grouped_matmul.grouped_product(r, k, tiles), rows, kernels)
        return out, *pull(cotangent)

    out, *gradients = run(rows, kernels, cotangent)
    float32 = [x.astype(jnp.float32) for x in (rows[own], kernels, cotangent[own])]
    wanted, pull = jax.vjp(lambda r, k: expected(r, k, sizes), *float32[:2])
    wanted_gradients = pull(float32[2])
    close = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for a, b in [(out[own], wanted), (gradients[0][own], wanted_gradients[0])]:
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=close, atol=close * 5)
    np.testing.assert_allclose(
        gradients[1].astype(jnp.float32), wanted_gradients[1], rtol=close, atol=close * 20
    )
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(dtype)}
    unused = np.repeat(~np.asarray(tiles.in_use[:, 0, 0]), TILE)
    assert not out[unused].any() and not gradients[0][unused].any()


def test_tiles_are_enough_for_any_sizes():
    for sizes in ([ROWS, 0, 0], [1, 1, ROWS - 2], [129, 129, ROWS - 258]):
        tiles = Tiles.create(jnp.asarray(sizes, jnp.int32), ROWS)
        assert int(tiles.count.sum()) <= len(tiles.group)
        assert [int(n) for n in tiles.count] == [-(-size // TILE) for size in sizes]


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("platform", "ragged", "loop"),
    [("cpu", False, True), ("cuda", False, False), ("tpu", True, False)],
)
def test_only_tpus_have_an_instruction_for_it_and_only_cpus_loop(platform, ragged, loop):
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [((640, 8), "float32"), ((3, 8, 16), "float32"), ((3,), "int32")]
    ]

    def total(rows, kernels, sizes):
        tiles = Tiles.create(sizes, ROWS)
        return jnp.sum(grouped_matmul.grouped_product(rows, kernels, tiles))

    function = jax.jit(jax.grad(total))
    module = jax.export.export(function, platforms=[platform])(*shapes).mlir_module()
    assert ("ragged_dot" in module) == ragged
    assert ("stablehlo.while" in module) == loop
