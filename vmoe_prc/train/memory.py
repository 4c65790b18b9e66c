"""Compares the size of a training state with the memory of the devices, before it is made."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vmoe_prc.config import ConfigError
from vmoe_prc.steps.state import TrainState


def check_state_fits(state: TrainState, devices: Sequence[Any]) -> None:
    """Checks that parameters, their gradients and the optimiser's state fit a device.

    Activations come on top, so that a state that passes may still be too large.

    Args:
      state: Shapes, dtypes and shardings of the state.
      devices: Devices of this process.

    Raises:
      ConfigError: If they do not fit.
    """
    limit = device_memory(devices)
    # Gradients have the size of the parameters.
    needed = _bytes(state) + _bytes(state.params)
    shared = len(devices) if devices[0].platform == "cpu" else 1
    if limit is not None and needed * shared > limit:
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        raise ConfigError(
            "config.model",
            f"{count:,} parameters",
            f"with gradients and optimizer state they need {needed / 2**30:,.1f} GiB per device, "
            f"of which {limit / shared / 2**30:,.1f} GiB are there; choose a smaller model, or "
            "spread it by config.num_expert_partitions or config.shard_dense_params",
        )


def check_batches_fit(splits: Mapping[str, jax.ShapeDtypeStruct], num_processes: int) -> None:
    """Checks that the images of a batch fit the memory of a host.

    Args:
      splits: Shape and dtype of the images of a global batch, by the name of the split.
      num_processes: Processes that share a batch.

    Raises:
      ConfigError: If they do not fit.
    """
    limit = _host_memory()
    for name, images in splits.items():
        needed = math.prod(images.shape) * images.dtype.itemsize // num_processes
        if needed > limit:
            raise ConfigError(
                f"config.dataset.{name}.batch_size",
                images.shape[0],
                f"the images of a batch need {needed / 2**30:,.1f} GiB per process, of which "
                f"{limit / 2**30:,.1f} GiB are there",
            )


def device_memory(devices: Sequence[Any]) -> int | None:
    """Returns the bytes of a device, or of the host where the devices are CPUs; None if unknown."""
    if devices[0].platform == "cpu":
        return _host_memory()
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(tree: object) -> int:
    """Returns the bytes that one device holds of a tree of shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
