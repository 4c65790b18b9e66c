"""The attack of V-MoE's study, on a function whose gradient is known, and in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vmoe_prc.steps.adversarial import attack
from vmoe_prc.steps.train import make_gradients


def test_steps_go_uphill_and_leave_the_range():
    target = jnp.array([2.0, 0.6, -1.0, 0.0]).reshape(1, 2, 2, 1)
    images = jnp.ones((1, 2, 2, 1))

    def objective(images, keys):
        assert set(keys) == {"dropout"}
        return -jnp.sum((images - target) ** 2)

    keys = {"dropout": jax.random.key(0)}
    attacked = attack(objective, images, keys, max_epsilon=0.75, num_updates=3)
    # Quarters of a pixel: past 1, over 0.6 and back, and down.
    expected = np.array([1.75, 0.75, 0.25, 0.25]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(attacked, expected, atol=1e-6)


@pytest.mark.slow
def test_training_takes_the_gradients_of_attacked_images():
    model = tiny.tiny_model(router={"noise_std": 0.0}, dropout_rate=0.0)
    batch = tiny.one_view_batch(4)
    keys = {name: jax.random.key(0) for name in ("params", "gating", "dropout")}
    params = jax.jit(model.init)(keys, batch["image"])["params"]
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    options = {"loss": {"name": "softmax_xent"}}
    plain = jax.jit(make_gradients(model, **options))
    adversarial = {"max_epsilon": 0.1, "num_updates": 2, "attack_auxiliary_loss": True}
    attacked = jax.jit(make_gradients(model, adversarial=adversarial, **options))
    before, after = plain(params, batch, 0)[1], attacked(params, batch, 0)[1]
    assert after["main_loss"] > before["main_loss"] + 0.05
    none = {"max_epsilon": 0.0, "num_updates": 1, "attack_auxiliary_loss": False}
    still, _ = jax.jit(make_gradients(model, adversarial=none, **options))(params, batch, 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        still,
        plain(params, batch, 0)[0],
    )
