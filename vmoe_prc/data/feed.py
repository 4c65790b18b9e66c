"""Host batches become global arrays on the devices, a few steps ahead of their use."""

import collections
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Float, UInt8

from vmoe_prc.data import pipeline
from vmoe_prc.data.ops.registry import VALUE_RANGE
from vmoe_prc.runtime.mesh import batch_sharding


def device_batches(
    batches: Iterable[Mapping[str, np.ndarray]], sharding: Sharding, prefetch: int
) -> Iterator[dict[str, jax.Array]]:
    """Puts batches on the devices while earlier ones are computed on.

    Images of bytes become floats there: see `value_range` of the preprocessing.

    Args:
      batches: This process's rows of each global batch.
      sharding: How the leading axis of a global batch is split over the devices.
      prefetch: Batches that are on their way, at least 1; transfers are asynchronous.
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        arrays = {
            key: jax.make_array_from_process_local_data(sharding, x) for key, x in batch.items()
        }
        if VALUE_RANGE in arrays:
            arrays["image"] = in_range(arrays["image"], arrays.pop(VALUE_RANGE))
        queue.append(arrays)
        if len(queue) >= prefetch:
            yield queue.popleft()
    yield from queue


@jax.jit
def in_range(
    images: UInt8[Array, "B *rest"], ranges: Float[Array, "B 2"]
) -> Float[Array, "B *rest"]:
    """Maps bytes from [0, 255] to the (low, high) of each row, as float32."""
    low, high = ranges.T.reshape(2, -1, *(1,) * (images.ndim - 1))
    return images.astype(jnp.float32) * ((high - low) / 255) + low


def eval_batches(dataset: ml_collections.ConfigDict, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Reads every image of a split once; each process reads its rows of the global batches.

    Args:
      dataset: A completed section of `config.dataset`.
      mesh: The devices.

    Yields:
      Global batches with a `mask`, see `pipeline.eval_batches`.
    """
    return device_batches(
        pipeline.eval_batches(
            dataset,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        batch_sharding(mesh),
        dataset.prefetch_device,
    )
