"""Grouped products against a product per group; on TPU they are XLA's own instruction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.models import grouped_matmul

SIZES = {
    "even": [100, 100, 100],
    "more than a block, none, few": [290, 0, 10],
    "rows beyond the last group": [1, 129, 50],
    "nothing at all": [0, 0, 0],
    "whole blocks": [128, 128, 44],
}


def expected(rows, kernels, sizes):
    ends = np.cumsum(sizes)
    parts = [
        rows[end - size : end] @ kernels[e]
        for e, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]
    return jnp.concatenate(parts)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_gradients(sizes, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (300, 8), dtype)
    kernels = jax.random.normal(keys[1], (3, 8, 16), dtype)
    cotangent = jax.random.normal(keys[2], (300, 16), dtype)
    count = sum(sizes)
    # What is beyond the groups must reach nothing.
    rows = rows.at[count:].set(jnp.nan)
    cotangent = cotangent.at[count:].set(jnp.nan)

    @jax.jit
    def run(rows, kernels, sizes, cotangent):
        out, pull = jax.vjp(lambda r, k: grouped_matmul.grouped_product(r, k, sizes), rows, kernels)
        return out, *pull(cotangent)

    out, *gradients = run(rows, kernels, jnp.asarray(sizes, jnp.int32), cotangent)
    float32 = [x.astype(jnp.float32) for x in (rows[:count], kernels, cotangent[:count])]
    wanted, pull = jax.vjp(lambda r, k: expected(r, k, sizes), *float32[:2])
    wanted_gradients = pull(float32[2])
    close = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for a, b in [(out[:count], wanted), (gradients[0][:count], wanted_gradients[0])]:
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=close, atol=close * 5)
    np.testing.assert_allclose(
        gradients[1].astype(jnp.float32), wanted_gradients[1], rtol=close, atol=close * 20
    )
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("platform", "ragged"), [("cpu", False), ("cuda", False), ("tpu", True)])
def test_only_tpus_have_an_instruction_for_it(platform, ragged):
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [((300, 8), "float32"), ((3, 8, 16), "float32"), ((3,), "int32")]
    ]
    function = jax.jit(jax.grad(lambda r, k, s: jnp.sum(grouped_matmul.grouped_product(r, k, s))))
    module = jax.export.export(function, platforms=[platform])(*shapes).mlir_module()
    assert ("ragged_dot" in module) == ragged
