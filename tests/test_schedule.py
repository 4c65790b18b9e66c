"""Learning rates against the golden values."""

import jax
import numpy as np
import pytest

from vmoe_prc.schedule import create_learning_rate_schedule


@pytest.mark.parametrize(
    ("name", "peak"), [("warmup_linear_decay", 1e-3), ("warmup_cosine_decay", 3e-3)]
)
def test_golden(golden, close, name, peak):
    data = golden("schedule")
    schedule = create_learning_rate_schedule(
        schedule=name, total_steps=1000, peak_value=peak, end_value=1e-5, warmup_steps=100
    )
    rates = jax.jit(jax.vmap(schedule))(data["steps"])
    np.testing.assert_allclose(rates, data[name], rtol=1e-5, atol=1e-9)


def test_constant():
    schedule = create_learning_rate_schedule(schedule="constant", total_steps=9, value=0.1)
    assert schedule(5) == 0.1


def test_reciprocal_root_cools_down_to_zero():
    schedule = create_learning_rate_schedule(
        schedule="big_vision_rsqrt",
        total_steps=1000,
        peak_value=1.0,
        timescale=100,
        warmup_steps=50,
        cooldown_steps=200,
    )
    np.testing.assert_allclose(schedule(25), 0.5)
    np.testing.assert_allclose(schedule(50 + 300), 0.5)
    before = 1 / np.sqrt(1 + 750 / 100)
    np.testing.assert_allclose(schedule(800), before, rtol=1e-6)
    np.testing.assert_allclose(schedule(900), before / 2, rtol=1e-6)
    np.testing.assert_allclose(schedule(1000), 0, atol=1e-9)


def test_errors():
    with pytest.raises(ValueError, match="did you mean 'warmup_cosine_decay'"):
        create_learning_rate_schedule(schedule="warmup_cosin_decay", total_steps=9)
    with pytest.raises(ValueError, match="warmup_steps = 9 must be less than the 9 steps"):
        create_learning_rate_schedule(
            schedule="warmup_linear_decay", total_steps=9, peak_value=1, warmup_steps=9
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 4, "cooldown_steps": 7}, "must not exceed the 10 steps"),
        ({"timescale": 0}, "timescale = 0 must be positive"),
        ({"timescale": -2}, "timescale = -2 must be positive"),
    ],
)
def test_reciprocal_root_refuses_what_has_no_rate(options, message):
    options = {"peak_value": 1.0, "timescale": 2, **options}
    with pytest.raises(ValueError, match=message):
        create_learning_rate_schedule(schedule="big_vision_rsqrt", total_steps=10, **options)


def test_decays_over_more_steps_than_an_int32_counts():
    for name in ("warmup_linear_decay", "warmup_cosine_decay"):
        schedule = create_learning_rate_schedule(
            schedule=name, total_steps=10**11, peak_value=1.0, warmup_steps=100
        )
        np.testing.assert_allclose(schedule(np.int32(100 + 10**9)), 0.99, atol=0.011)


def test_a_decay_may_end_before_the_training():
    schedule = create_learning_rate_schedule(
        schedule="warmup_linear_decay", total_steps=100, peak_value=1.0, decay_steps=50
    )
    np.testing.assert_allclose([schedule(25), schedule(50), schedule(80)], [0.5, 0, 0])


def test_exponential_decay_after_the_warm_up():
    schedule = create_learning_rate_schedule(
        schedule="warmup_exponential_decay",
        total_steps=7,
        peak_value=0.8,
        warmup_steps=10,
        transition_steps=100,
        decay_rate=0.25,
        end_value=0.01,
    )
    np.testing.assert_allclose([schedule(step) for step in (5, 10, 60, 110)], [0.4, 0.8, 0.4, 0.2])
    np.testing.assert_allclose(schedule(10_000), 0.01)
