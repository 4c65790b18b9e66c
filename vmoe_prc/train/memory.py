"""Compares what a training needs with the memory of the devices, before any of it is made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.memory import device_bytes, device_memory, host_memory
from vmoe_prc.steps.state import TrainState

_PRODUCTS = ("dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated")


def check_state_fits(state: TrainState, devices: Sequence[Any]) -> None:
    """Checks that parameters, their gradients and the optimiser's state fit a device.

    Activations come on top, see `check_step_fits` and `runtime.memory`.

    Args:
      state: Shapes, dtypes and shardings of the state.
      devices: Devices of this process.

    Raises:
      ConfigError: If they do not fit.
    """
    limit = device_memory(devices)
    # Gradients have the size of the parameters.
    needed = device_bytes(state) + device_bytes(state.params)
    if limit is not None and needed > limit:
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        raise ConfigError(
            "config.model",
            f"{count:,} parameters",
            f"with gradients and optimizer state they need {needed / 2**30:,.1f} GiB per device, "
            f"of which {limit / 2**30:,.1f} GiB are there; choose a smaller model, or "
            "spread it by config.num_expert_partitions, config.shard_optimizer or "
            "config.shard_dense_params",
        )


def check_step_fits(step: Any, state: TrainState, batch: Any, mesh: Mesh) -> None:
    """Checks that a device can hold its part of each matrix product of a step.

    XLA stores the results of matrix products, while results of other operations may never be in
    memory as a whole. All of a step may still be too large.

    Args:
      step: The jitted step.
      state: Shapes, dtypes and shardings of the state.
      batch: Shapes, dtypes and shardings of a batch.
      mesh: The device mesh.

    Raises:
      ConfigError: If one does not fit.
    """
    limit = device_memory(mesh.local_devices)
    if limit is None:
        return
    with jax.set_mesh(mesh):
        products = _products(step.trace(state, batch).jaxpr.jaxpr)
    largest = max(products, key=_array_bytes, default=None)
    if largest is not None and (needed := _array_bytes(largest) // mesh.size) > limit:
        raise ConfigError(
            "config.model",
            f"a step with an array of shape {largest.shape}",
            f"it needs {needed / 2**30:,.1f} GiB per device, of which {limit / 2**30:,.1f} "
            "GiB are there; choose a smaller model, or a smaller config.dataset.train.batch_size",
        )


def check_batches_fit(splits: Mapping[str, jax.ShapeDtypeStruct], num_processes: int) -> None:
    """Checks that the images of a batch fit the memory of a host.

    Args:
      splits: Shape and dtype of the images of a global batch, by the name of the split.
      num_processes: Processes that share a batch.

    Raises:
      ConfigError: If they do not fit.
    """
    limit = host_memory()
    for name, images in splits.items():
        needed = math.prod(images.shape) * images.dtype.itemsize // num_processes
        if needed > limit:
            raise ConfigError(
                f"config.dataset.{name}.batch_size",
                images.shape[0],
                f"the images of a batch need {needed / 2**30:,.1f} GiB per process, of which "
                f"{limit / 2**30:,.1f} GiB are there",
            )


def _products(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yields shape and dtype of the result of each matrix product."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            yield from (variable.aval for variable in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _products(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _array_bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
