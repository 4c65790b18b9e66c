"""Optimisers against the golden updates; decay, freezing and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import imagenet_prc
from vmoe_prc.optimizer import create_optimizer

RECIPES = {
    "adam_wd": {
        "name": "adam",
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": [("kernel", 0.1)],
        "gradient_clip": {"global_norm": 1.0},
        "learning_rate": {
            "schedule": "warmup_linear_decay",
            "peak_value": 1e-2,
            "end_value": 1e-5,
            "warmup_steps": 2,
        },
    },
    "sgd_mom": {
        "name": "sgd",
        "momentum": 0.9,
        "gradient_clip": {"global_norm": 10.0},
        "learning_rate": {
            "schedule": "warmup_cosine_decay",
            "peak_value": 1e-2,
            "end_value": 1e-5,
            "warmup_steps": 2,
        },
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden(golden, close, recipe):
    data = golden("optimizer")
    optimizer = create_optimizer(total_steps=6, **RECIPES[recipe])
    params = {name: jnp.asarray(data[f"init/{name}"]) for name in ("kernel", "bias")}
    state = optimizer.init(params)
    for step in range(6):
        grads = {name: jnp.asarray(data[f"grads/{name}"][step]) for name in params}
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in params:
            close(params[name], data[f"{recipe}/{name}"][step])


PARAMS = {
    "head": {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)},
    "cls": jnp.ones(1),
}


def update(**options):
    optimizer = create_optimizer(
        **{"name": "sgd", "total_steps": 9, "learning_rate": 1.0, **options}
    )
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    return jax.tree.map(lambda x: float(x[0]), updates)


def test_decay_follows_the_first_rule_that_matches():
    rules = [("head/kernel", 0.5), ("head", 0.25)]
    assert update(weight_decay=rules) == {
        "head": {"kernel": -3.0, "bias": -2.5},
        "cls": -1.0,
    }
    assert update(weight_decay=0.5) == {"head": {"kernel": -3.0, "bias": -3.0}, "cls": -1.5}


def test_frozen_parameters_do_not_move():
    frozen = update(frozen_pattern=["bias$", "^cls"], weight_decay=0.5)
    assert frozen == {"head": {"kernel": -3.0, "bias": 0.0}, "cls": 0.0}
    assert update(frozen_pattern="head")["cls"] == -1.0


def test_only_parameters_that_are_named_move():
    moved = update(trainable_pattern=["bias$", "^cls"], weight_decay=0.5)
    assert moved == {"head": {"kernel": 0.0, "bias": -3.0}, "cls": -1.5}
    with pytest.raises(ValueError, match="frozen_pattern = 'a' or trainable_pattern = 'b', not"):
        update(frozen_pattern="a", trainable_pattern="b")


def test_gradients_are_scaled_before_they_are_clipped():
    scaled = update(gradient_scale=[("head/kernel", 3.0), ("head", 0.5)])
    assert scaled == {"head": {"kernel": -6.0, "bias": -1.0}, "cls": -1.0}
    norm = np.sqrt(3 * 36 + 3 + 1)
    clipped = update(
        gradient_scale=[("head/kernel", 3.0), ("head", 0.5)], gradient_clip={"global_norm": 1.0}
    )
    np.testing.assert_allclose(clipped["head"]["kernel"], -6 / norm, rtol=1e-6)


def test_clipping():
    norm = np.sqrt(6 * 4 + 1)
    assert np.isclose(update(gradient_clip={"global_norm": 1.0})["cls"], -1 / norm)
    # Gradients that are small enough stay as they are, to the last bit.
    assert update(gradient_clip={"global_norm": norm + 1e-3})["cls"] == -1.0
    clipped = update(gradient_clip={"absolute_value": 1.5})
    assert clipped == {"head": {"kernel": -1.5, "bias": -1.5}, "cls": -1.0}


def test_a_norm_that_is_known_is_not_computed_again():
    optimizer = create_optimizer(
        name="sgd", total_steps=9, learning_rate=1.0, gradient_clip={"global_norm": 1.0}
    )
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, grad_norm=4.0)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g / 4), updates, PARAMS)


def test_takes_the_optimizer_of_a_config():
    config = imagenet_prc.get_config().optimizer
    optimizer = create_optimizer(total_steps=20_000, **config)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert float(updates["head"]["kernel"][0]) == 0.0  # the warm-up starts at 0


def test_moments_may_be_bfloat16():
    optimizer = create_optimizer(name="adam", total_steps=9, learning_rate=1.0, mu_dtype="bfloat16")
    dtypes = {x.dtype for x in jax.tree.leaves(optimizer.init(PARAMS)) if x.ndim}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


def test_errors():
    with pytest.raises(ValueError, match="unknown optimizer 'lion'; allowed: adafactor, adam, sgd"):
        update(name="lion")
    with pytest.raises(ValueError, match=r"global_norm = 1.0 or absolute_value = 2.0, not both"):
        update(gradient_clip={"global_norm": 1.0, "absolute_value": 2.0})


def test_adafactor_keeps_little_and_follows_its_equations():
    params = {"Moe": {"kernel": jnp.ones((2, 128, 256)), "bias": jnp.ones((2, 256))}}
    optimizer = create_optimizer(name="adafactor", total_steps=10, learning_rate=1.0)
    state = optimizer.init(params)
    sizes = {str(x.dtype): 0 for x in jax.tree.leaves(state)}
    for x in jax.tree.leaves(state):
        sizes[str(x.dtype)] += x.size
    num_params = 2 * 128 * 256 + 2 * 256
    assert sizes["bfloat16"] == num_params, "momentum"
    assert sizes["float32"] < 0.02 * num_params, "rows and columns of each expert's kernel"
    keys = jax.random.split(jax.random.key(0), 2)
    grads = {
        "Moe": {
            name: jax.random.normal(key, params["Moe"][name].shape)
            for key, name in zip(keys, ("kernel", "bias"), strict=True)
        }
    }
    updates, _ = jax.jit(optimizer.update)(grads, state, params)
    # At the first step the means are the gradient's own, and momentum takes a tenth.
    square = np.square(np.asarray(grads["Moe"]["kernel"], np.float64))
    rows, columns = square.mean(2, keepdims=True), square.mean(1, keepdims=True)
    direction = grads["Moe"]["kernel"] / np.sqrt(rows * columns / rows.mean(1, keepdims=True))
    np.testing.assert_allclose(updates["Moe"]["kernel"], -0.1 * direction, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(updates["Moe"]["bias"], -0.1 * np.sign(grads["Moe"]["bias"]), 1e-2)
