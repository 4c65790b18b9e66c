"""The step of a configuration, built without data."""

import jax
import numpy as np
import pytest
from small_run import small_config

from vmoe_prc.compile.batches import train_batch_spec
from vmoe_prc.config import complete
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.runtime.trees import named_leaves
from vmoe_prc.train.step import build_step


def batches(spec):
    rng = np.random.default_rng(0)
    for _ in range(2):
        batch = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
        batch["image"] = rng.uniform(-1, 1, spec["image"].shape).astype(np.float32)
        batch["labels"][np.arange(len(batch["labels"])), rng.integers(10, size=32)] = 1
        batch["view_from_image"][:] = np.eye(3)
        yield batch


def train(**changes):
    """Takes two steps on 4 devices, of which two share an expert's copy."""
    config = complete(small_config("nowhere", num_expert_partitions=2, **changes))
    mesh = create_mesh(2, jax.devices()[:4])
    spec = train_batch_spec(config.dataset.train)
    step = build_step(config, mesh, spec, 10)
    with jax.set_mesh(mesh):
        state = step.create_state()
        for batch in batches(spec):
            state, metrics = step.train_step(state, batch)
    return state, jax.device_get(metrics)


@pytest.mark.slow
def test_a_split_optimizer_makes_the_same_updates_of_whole_parameters():
    expected, expected_metrics = train()
    state, metrics = train(shard_optimizer=True)
    for part in ("params", "opt_state"):
        arrays, others = (named_leaves(getattr(x, part)) for x in (state, expected))
        for name, array in arrays.items():
            # Adam's division blows up the rounding errors of gradients that are zero in truth.
            np.testing.assert_allclose(array, others[name], rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        metrics["global_norm/grads"], expected_metrics["global_norm/grads"], rtol=1e-5
    )
    params, moments = named_leaves(state.params), named_leaves(state.opt_state)
    for name, x in params.items():
        experts = "Moe/Mlp" in name
        assert x.sharding == named_leaves(expected.params)[name].sharding
        (mean,) = (y for key, y in moments.items() if key.endswith(f"mu/{name}"))
        parts = mean.size // mean.addressable_shards[0].data.size
        assert parts == (4 if any(n % (2 if experts else 4) == 0 for n in x.shape[experts:]) else 1)
