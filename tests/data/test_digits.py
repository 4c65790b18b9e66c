"""The bundled data set, prepared for real."""

import jax
import numpy as np
from sklearn.datasets import load_digits

from vmoe_prc.data import pipeline
from vmoe_prc.data.datasets.digits import Digits
from vmoe_prc.data.feed import prefetch_to_device
from vmoe_prc.data.split import open_split
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh


def test_digits(tmp_path, dataset):
    config = dataset(
        name="digits",
        split="test",
        data_dir=str(tmp_path),
        process='decode|resize(8)|value_range(0, 16)|onehot(10)|keep("image", "labels")',
        batch_size=359,
    )
    split = open_split(config, "config.dataset.test")
    sharding = batch_sharding(create_mesh(1, jax.devices()[:1]))
    [batch] = prefetch_to_device(pipeline.eval_batches(split), sharding, 1, split.value_range)
    digits = load_digits()
    np.testing.assert_array_equal(np.argmax(batch["labels"], -1), digits.target[4::5])
    np.testing.assert_allclose(batch["image"][..., 0], digits.images[4::5], atol=0.05)
    splits = Digits(data_dir=tmp_path).info.splits
    assert splits["train"].num_examples + splits["test"].num_examples == 1797
