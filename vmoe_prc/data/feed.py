"""Host batches become global arrays on the devices, a few steps ahead of their use."""

import collections
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Sharding


def device_batches(
    batches: Iterable[Mapping[str, np.ndarray]], sharding: Sharding, prefetch: int
) -> Iterator[dict[str, jax.Array]]:
    """Puts batches on the devices while earlier ones are computed on.

    Args:
      batches: This process's rows of each global batch.
      sharding: How the leading axis of a global batch is split over the devices.
      prefetch: Batches that are on their way, at least 1; transfers are asynchronous.
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        queue.append(
            {key: jax.make_array_from_process_local_data(sharding, x) for key, x in batch.items()}
        )
        if len(queue) >= prefetch:
            yield queue.popleft()
    yield from queue
