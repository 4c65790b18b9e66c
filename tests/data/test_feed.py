"""Host batches on devices."""

import jax
import numpy as np
import pytest

from vmoe_prc.data.feed import prefetch_to_device
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh


def host_batches(count, fail_at=None):
    for i in range(count):
        if i == fail_at:
            raise OSError("disk on fire")
        yield {"image": np.full((8, 2), i, np.float32), "mask": np.ones(8, bool)}


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_all_batches_arrive_in_order_and_split_over_the_devices(prefetch):
    sharding = batch_sharding(create_mesh(2))
    batches = list(prefetch_to_device(host_batches(4), sharding, prefetch))
    assert [int(batch["image"][0, 0]) for batch in batches] == [0, 1, 2, 3]
    for batch in batches:
        assert batch["image"].sharding == sharding
        assert len(batch["image"].addressable_shards) == jax.device_count()


def test_bytes_become_floats_of_their_range():
    images = np.arange(8 * 6, dtype=np.uint8).reshape(8, 2, 3)
    sharding = batch_sharding(create_mesh(2))
    [batch] = prefetch_to_device([{"image": images}], sharding, 1, (-1.0, 1.0))
    assert batch.keys() == {"image"}
    assert batch["image"].sharding.is_equivalent_to(sharding, 3)
    np.testing.assert_allclose(batch["image"], images / 127.5 - 1, atol=1e-6)


def test_reads_no_further_ahead_than_told():
    read = []
    source = (read.append(i) or batch for i, batch in enumerate(host_batches(9)))
    batches = prefetch_to_device(source, batch_sharding(create_mesh(1)), 3)
    next(batches)
    assert len(read) == 3


def test_errors_of_the_source_reach_the_consumer():
    batches = prefetch_to_device(host_batches(4, fail_at=1), batch_sharding(create_mesh(1)), 1)
    next(batches)
    with pytest.raises(OSError, match="disk on fire"):
        next(batches)
