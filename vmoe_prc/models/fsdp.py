"""Products with kernels that are split over all devices and gathered for use.

Fully sharded data parallelism (ZeRO, arXiv 1910.02054, stage 3): a device keeps its part of
each kernel, gathers the whole for the forward pass and again for the backward pass, and
receives its part of the gradient, summed over devices, by a reduce-scatter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from vmoe_prc.models import patch_embedding
from vmoe_prc.runtime.mesh import BATCH, all_gather, kernel_spec, on_each_device


def _gathering(operation: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes an operation accept a kernel that is split by `mesh.kernel_spec`."""

    @functools.wraps(operation)
    def run(inputs: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return operation(inputs, kernel, *args, **options)
        spec = kernel_spec(kernel.shape, mesh.size)

        # The gathered kernel is not kept for the backward pass: that is what saves memory.
        @jax.checkpoint
        def local(inputs, part):
            return operation(inputs, all_gather(part, spec), *args, **options)

        return on_each_device(local, (BATCH, spec), BATCH)(inputs, kernel)

    return run


# For attributes of linen's layers; the batch is the leading axis.
dot_general = _gathering(jax.lax.dot_general)
patch_products = _gathering(patch_embedding.patch_products)
