"""The kernels for Hopper: when they are chosen, and their numbers in Pallas' interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AbstractDevice, AbstractMesh

from vmoe_prc.models import grouped_matmul, hopper_matmul
from vmoe_prc.models.tiles import TILE, Tiles
from vmoe_prc.runtime.mesh import AXES, AXIS_TYPES

WIDTHS = 128, 256
SIZES = 130, 0, 100


def problem(dtype=jnp.bfloat16):
    tiles = Tiles.create(jnp.asarray(SIZES, jnp.int32), 300)
    row = np.arange(len(tiles.group) * TILE)
    used = np.zeros((len(row), 1), np.bool_)
    for first, size in zip(np.asarray(tiles.first), SIZES, strict=True):
        used |= ((row >= first * TILE) & (row < first * TILE + size))[:, None]
    rng = np.random.default_rng(0)
    rows, others = (rng.normal(size=(len(row), width)) * used for width in WIDTHS)
    kernels = rng.normal(size=(len(SIZES), *WIDTHS))
    return *(jnp.asarray(x, dtype) for x in (rows, others, kernels)), tiles


@pytest.mark.parametrize(
    ("kind", "dtype", "kernel"),
    [
        ("NVIDIA H100 80GB HBM3", jnp.bfloat16, True),
        ("NVIDIA H200", jnp.bfloat16, True),
        ("NVIDIA H100 80GB HBM3", jnp.float32, False),
        ("NVIDIA A100-SXM4-40GB", jnp.bfloat16, False),
    ],
)
def test_kernels_are_chosen_by_the_devices_of_the_mesh(kind, dtype, kernel):
    rows, _, kernels, tiles = problem(dtype)
    device = AbstractDevice(device_kind=kind, num_cores=132, platform="gpu")
    mesh = AbstractMesh((1, 1), AXES, axis_types=AXIS_TYPES, abstract_device=device)

    def total(rows, kernels):
        return jnp.sum(grouped_matmul.grouped_product(rows, kernels, tiles))

    with jax.sharding.use_abstract_mesh(mesh):
        text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(rows, kernels))
    assert ("wgmma" in text) == kernel
    assert ("platform_index" in text) != kernel


@pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"),
    reason="needs the interpreter of GPU kernels of JAX 0.11",
)
def test_numbers():
    rows, others, kernels, tiles = problem()
    interpret = mosaic_gpu.InterpretGPUParams()
    transposed = jnp.swapaxes(kernels, 1, 2)
    pairs = [
        (
            hopper_matmul.product(rows, kernels, tiles.group, interpret),
            grouped_matmul._looped_product(rows, kernels, tiles),
        ),
        (
            hopper_matmul.product(others, transposed, tiles.group, interpret),
            grouped_matmul._looped_product(others, transposed, tiles),
        ),
        (
            hopper_matmul.outer_products(rows, others, tiles.first, tiles.count, interpret),
            grouped_matmul._looped_outer_products(rows, others, tiles),
        ),
    ]
    for found, expected in pairs:
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
