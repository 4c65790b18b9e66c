"""Host batches become global arrays on the devices, a few steps ahead of their use."""

import collections
from collections.abc import Generator, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from vmoe_prc.data import pipeline
from vmoe_prc.data.ops.image_ops import rescale
from vmoe_prc.data.split import Split
from vmoe_prc.runtime.deadline import limited_cleanup
from vmoe_prc.runtime.mesh import batch_sharding

_rescale = jax.jit(rescale)


def eval_batches(split: Split, mesh: Mesh) -> Generator[dict[str, jax.Array], None, None]:
    """Makes global batches of every example once, with a `mask`; each process reads its rows.

    Args:
      split: The data.
      mesh: The devices.
    """
    rows = pipeline.eval_batches(
        split, process_index=jax.process_index(), process_count=jax.process_count()
    )
    return on_devices(split, rows, mesh)


def on_devices(
    split: Split, rows: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Generator[dict[str, jax.Array], None, None]:
    """Makes global batches on the devices.

    Args:
      split: The data, whose `value_range` and `prefetch_device` are used.
      rows: This process's rows of each global batch.
      mesh: The devices.
    """
    return prefetch_to_device(
        rows, batch_sharding(mesh), split.config.prefetch_device, split.value_range
    )


def prefetch_to_device(
    batches: Iterable[Mapping[str, np.ndarray]],
    sharding: Sharding,
    prefetch: int,
    value_range: tuple[float, float] | None = None,
) -> Generator[dict[str, jax.Array], None, None]:
    """Puts batches on the devices while earlier ones are computed on.

    Args:
      batches: This process's rows of each global batch.
      sharding: How the leading axis of a global batch is split over the devices.
      prefetch: Batches that are transferred at a time, at least 1.
      value_range: (low, high) that the bytes 0 and 255 of `image` stand for, see
        `Split.value_range`; None leaves images as they are.
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    try:
        for batch in batches:
            arrays = {
                key: jax.make_array_from_process_local_data(sharding, x) for key, x in batch.items()
            }
            if value_range is not None and arrays["image"].dtype == np.uint8:
                arrays["image"] = _rescale(arrays["image"], np.asarray(value_range, np.float32))
            queue.append(arrays)
            if len(queue) >= prefetch:
                yield queue.popleft()
        yield from queue
    finally:
        # Ends the threads that read.
        if isinstance(batches, Generator):
            with limited_cleanup():
                batches.close()
