"""Splits of the data, read onto the devices of a mesh."""

from collections.abc import Iterator

import jax
import ml_collections
from jax.sharding import Mesh

from vmoe_prc import data
from vmoe_prc.data.feed import device_batches
from vmoe_prc.mesh import batch_sharding


def eval_batches(dataset: ml_collections.ConfigDict, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Reads every image of a split once; each process reads its rows of the global batches.

    Args:
      dataset: A completed section of `config.dataset`.
      mesh: The devices.

    Yields:
      Global batches with a `mask`, see `data.eval_batches`.
    """
    return device_batches(
        data.eval_batches(
            dataset,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        batch_sharding(mesh),
        dataset.prefetch_device,
    )
