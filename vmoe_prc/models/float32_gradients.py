"""Layers that compute in bfloat16 and have float32 gradients of their parameters.

Linen's layers cast their parameters to the dtype of the computation, so that gradients have this
dtype, too, until they reach the cast, where XLA sums them over devices. Here the cast belongs to
the product: products of bfloat16 arrays are summed in float32 over the tokens of a
device, as matrix units do anyway, and the float32 sums are summed over devices. The forward pass
and the gradients of inputs equal Linen's.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vmoe_prc.arrays import Array
from vmoe_prc.models import fsdp
from vmoe_prc.models.patch_embedding import flat_patches, patch_products
from vmoe_prc.runtime.mesh import BATCH, all_gather, kernel_spec, on_each_device, sum_scatter

_enabled = contextvars.ContextVar("float32_gradients", default=False)


@contextlib.contextmanager
def float32_gradients() -> Iterator[None]:
    """Gives layers in bfloat16 that are applied in this context float32 gradients."""
    token = _enabled.set(True)
    try:
        with nn.intercept_methods(_layer):
            yield
    finally:
        _enabled.reset(token)


def in_use() -> bool:
    """Whether gradients are float32 here, for what is no layer of Linen."""
    return _enabled.get()


def _layer(
    next_function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    layer = context.module
    if (
        context.method_name != "__call__"
        or not isinstance(layer, (nn.Dense, nn.DenseGeneral, nn.Conv))
        or layer.is_initializing()
        or jnp.dtype(layer.dtype or jnp.float32) == jnp.float32
        or not _is_one_product(layer)
    ):
        return next_function(*args, **kwargs)
    (inputs,) = args
    inputs = inputs.astype(layer.dtype)
    params = layer.variables["params"]
    kernel = params["kernel"]
    if isinstance(layer, nn.Conv):  # The embedding of patches that do not overlap.
        inputs = flat_patches(inputs, kernel.shape[:2])
        num_axes, split = 1, layer.conv_general_dilated is fsdp.patch_products
    else:
        num_axes = len(_contracted_axes(layer))
        split = layer.dot_general is fsdp.dot_general
    outputs = _products(inputs, kernel, num_axes, split)
    return _add_bias(outputs, params["bias"]) if "bias" in params else outputs


def _is_one_product(layer: nn.Dense | nn.DenseGeneral | nn.Conv) -> bool:
    """Whether a layer is what this module computes; a router of a user may have any other."""
    if layer.precision is not None:
        return False
    if isinstance(layer, nn.Conv):
        return layer.conv_general_dilated in (patch_products, fsdp.patch_products)
    axes = _contracted_axes(layer)
    last = axes == tuple(range(-len(axes), 0)) and not getattr(layer, "batch_dims", ())
    return last and layer.dot_general in (None, fsdp.dot_general) and not layer.dot_general_cls


def _contracted_axes(layer: nn.Dense | nn.DenseGeneral) -> tuple[int, ...]:
    axes = layer.axis if isinstance(layer, nn.DenseGeneral) else -1
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _products(inputs: Array, kernel: Array, num_axes: int, split: bool) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if not split or mesh.empty:
        return _product(inputs, kernel, num_axes, PartitionSpec())
    spec = kernel_spec(kernel.shape, mesh.size)

    def local(inputs, part):
        return _product(inputs, part, num_axes, spec)

    return on_each_device(local, (BATCH, spec), BATCH)(inputs, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(inputs: Array, kernel: Array, num_axes: int, spec: PartitionSpec) -> jax.Array:
    """Multiplies the last axes of the inputs with the first ones of a kernel.

    Args:
      inputs: (..., K...) in the dtype of the computation.
      kernel: (K..., F...) float32, or the part of it that this device has. It may have more
        axes K than the inputs, whose sizes are then products of the kernel's.
      num_axes: Number of axes K of the inputs.
      spec: How the kernel is split.

    Returns:
      (..., F...) in the dtype of the computation.
    """
    axes = tuple(range(inputs.ndim - num_axes, inputs.ndim))
    kernel = all_gather(kernel.astype(inputs.dtype), spec)
    kernel = _with_axes_of(inputs, kernel, num_axes)
    return jax.lax.dot_general(inputs, kernel, ((axes, tuple(range(num_axes))), ((), ())))


def _with_axes_of(inputs: Array, kernel: Array, num_axes: int) -> Array:
    contracted = inputs.shape[inputs.ndim - num_axes :]
    if kernel.shape[:num_axes] == contracted:
        return kernel
    return kernel.reshape(*contracted, kernel.shape[-1])


def _product_forward(inputs, kernel, num_axes, spec):
    return _product(inputs, kernel, num_axes, spec), (inputs, kernel)


def _product_backward(num_axes, spec, residuals, gradient):
    inputs, kernel = residuals
    num_rows = inputs.ndim - num_axes
    rows = tuple(range(num_rows))
    if tuple(spec):  # Else the compiler would keep the whole kernel of the forward pass.
        kernel, gradient = jax.lax.optimization_barrier((kernel, gradient))
    whole = all_gather(kernel.astype(inputs.dtype), spec)
    shaped = _with_axes_of(inputs, whole, num_axes)
    features = (tuple(range(num_rows, gradient.ndim)), tuple(range(num_axes, shaped.ndim)))
    of_inputs = jax.lax.dot_general(gradient, shaped, (features, ((), ())))
    of_kernel = jax.lax.dot_general(
        inputs, gradient, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
    )
    return of_inputs, sum_scatter(of_kernel.reshape(whole.shape), spec)


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: Array) -> jax.Array:
    """Adds a float32 bias to the last axes, in the dtype of `x`."""
    return x + bias.astype(x.dtype)


def _add_bias_forward(x, bias):
    return _add_bias(x, bias), bias


def _add_bias_backward(bias, gradient):
    rows = tuple(range(gradient.ndim - bias.ndim))
    return gradient, jnp.sum(gradient, axis=rows, dtype=jnp.float32)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)
