"""Dispatch against the golden arrays; equality of the methods; properties of the plan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_prc.models import dispatch
from vmoe_prc.models.dispatch import DispatcherOptions

METHODS = ("einsum", "gather")
UNLIMITED = DispatcherOptions(capacity_factor=4.0)
CASES = [(k, cf, bp) for k in (1, 2, 3) for cf in (0.5, 1.05, 1.5, 4.0) for bp in (False, True)]


@jax.jit
def run(plan, x):
    """Applies the golden experts, x * (e + 1) + e; a free slot is an expert's zero input."""
    expert = jnp.arange(plan.num_experts, dtype=x.dtype)[:, None, None]
    return plan.combine(plan.dispatch(x) * (expert + 1) + expert)


@jax.jit
def applied_weights(plan):
    """(G, S, E): the weight that each expert's output really gets."""
    kept = jnp.where(plan.kept, plan.weights, 0)
    chosen = jax.nn.one_hot(plan.experts, plan.num_experts)
    return jnp.einsum("GSK,GSKE->GSE", kept, chosen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("k", "cf", "bp"), CASES)
def test_golden_top_experts_per_item(golden, close, k, cf, bp, method):
    data = golden("dispatch")
    name = f"k{k}_cf{cf}_bp{int(bp)}"
    options = DispatcherOptions(capacity_factor=cf, batch_priority=bp)
    gates = jnp.asarray(data["gates"])
    plan = dispatch.top_experts_per_item(gates, k, method, options)
    # The released program makes slots that no token can take.
    assert plan.capacity == min(data[f"capacity_{name}"], gates.shape[1])
    close(applied_weights(plan), data[f"weight_{name}"])
    close(run(plan, jnp.asarray(data["inputs"])), data[f"out_{name}"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cf", [0.5, 1.05, 2.0])
def test_golden_top_items_per_expert(golden, close, cf, method):
    data = golden("dispatch")
    options = DispatcherOptions(capacity_factor=cf)
    plan = dispatch.top_items_per_expert(jnp.asarray(data["gates"]), method, options)
    close(run(plan, jnp.asarray(data["inputs"])), data[f"out_experts_choice_cf{cf}"])


@st.composite
def problems(draw):
    num_experts = draw(st.integers(1, 6))
    return {
        "seed": draw(st.integers(0, 1000)),
        "shape": (draw(st.integers(1, 3)), draw(st.integers(1, 20)), num_experts),
        "k": draw(st.integers(1, num_experts)),
        "capacity_factor": draw(st.sampled_from([0.3, 1.0, 1.7, 5.0])),
        "batch_priority": draw(st.booleans()),
        "expert_choice": draw(st.booleans()),
    }


def make(problem, method):
    keys = jax.random.split(jax.random.key(problem["seed"]), 2)
    gates = jax.nn.softmax(jax.random.normal(keys[0], problem["shape"]))
    x = jax.random.normal(keys[1], (*problem["shape"][:2], 5))

    options = DispatcherOptions(
        capacity_factor=problem["capacity_factor"],
        batch_priority=problem["batch_priority"] and not problem["expert_choice"],
    )

    def plan(gates):
        if problem["expert_choice"]:
            return dispatch.top_items_per_expert(gates, method, options)
        return dispatch.top_experts_per_item(gates, problem["k"], method, options)

    return gates, x, jax.jit(plan)


@given(problems())
def test_methods_agree_with_gradients(problem):
    results = []
    for method in METHODS:
        gates, x, plan = make(problem, method)

        def loss(gates, x, plan=plan):
            out = run(plan(gates), x)
            return jnp.sum(jnp.sin(out)), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(gates, x)
        results.append((*gradients, out))
    for einsum, gather in zip(*results, strict=True):
        np.testing.assert_allclose(einsum, gather, rtol=1e-5, atol=1e-5)


@given(problems())
def test_no_slot_is_taken_twice_and_none_wasted(problem):
    gates, _, plan = make(problem, "gather")
    plan = plan(gates)
    for g in range(gates.shape[0]):
        experts, slots = np.asarray(plan.experts)[g], np.asarray(plan.slots)[g]
        kept = slots < plan.capacity
        taken = (experts * plan.capacity + slots)[kept]
        assert len(set(taken.tolist())) == len(taken)
        demand = np.bincount(experts.ravel(), minlength=plan.num_experts)
        load = np.bincount(experts[kept], minlength=plan.num_experts)
        np.testing.assert_array_equal(load, np.minimum(demand, plan.capacity))


@given(problems(), st.integers(0, 1000))
def test_groups_are_independent(problem, seed):
    gates, x, plan = make(problem, "gather")
    order = np.random.default_rng(seed).permutation(gates.shape[0])
    apply = jax.jit(lambda gates, x: run(plan(gates), x))
    np.testing.assert_allclose(apply(gates, x)[order], apply(gates[order], x[order]))


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_moves_data_in_bfloat16_and_restores_the_dtype(method):
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 8, 4)))
    x = jax.random.normal(jax.random.key(1), (1, 8, 3))
    exact = dispatch.top_experts_per_item(gates, 1, method, UNLIMITED)
    rounding = dataclasses.replace(UNLIMITED, bfloat16=True)
    sent = dispatch.top_experts_per_item(gates, 1, method, rounding)
    assert sent.dispatch(x).dtype == jnp.float32
    rounded = exact.dispatch(x.astype(jnp.bfloat16)).astype(jnp.float32)
    np.testing.assert_array_equal(sent.dispatch(x), rounded)
    # Weights and sums stay float32: only what is sent back is rounded, too.
    outputs = jax.random.normal(jax.random.key(2), rounded.shape)
    expected = exact.combine(outputs.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(sent.combine(outputs), expected, rtol=1e-6, atol=1e-7)


def test_capacity_is_rounded_as_the_options_say():
    compute = dispatch.compute_capacity
    # Soft MoE's S/16: 196 tokens, 128 experts.
    assert [compute(196, 128, 1.0, *rule) for rule in (("round", 1), ("ceil", 1), ("ceil", 4))] == [
        2,
        2,
        4,
    ]
    assert compute(196, 128, 0.9, "round", None) == 1
    assert compute(10, 4, 1.0, "ceil", 5) == 5
    with pytest.raises(ValueError, match=r"capacity_factor = 0.2 gives an expert 0.31 slots"):
        compute(196, 128, 0.2, "round", 1)


def test_no_expert_has_more_slots_than_its_group_has_tokens():
    gates = jnp.ones((1, 24, 4)) / 4
    for factor, capacity in ((1.0, 12), (9.0, 24), (1e6, 24)):
        options = DispatcherOptions(capacity_factor=factor)
        assert dispatch.top_experts_per_item(gates, 2, "gather", options).capacity == capacity
        assert dispatch.top_items_per_expert(gates, "gather", options).capacity <= 24


def test_padding_takes_no_slots():
    """The tokens that are kept are those of the same group without its padding."""
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 24, 4)))
    mask = jnp.arange(24)[None] % 3 > 0
    for make, k in (("top_experts_per_item", (2,)), ("top_items_per_expert", ())):
        for options in (DispatcherOptions(), DispatcherOptions(capacity_factor=9.0)):
            plan = getattr(dispatch, make)(gates, *k, "gather", options, mask)
            # As likely to be chosen as any other token, were it not for the mask.
            loud = jnp.where(mask[..., None], gates, gates**0.1)
            other = getattr(dispatch, make)(loud, *k, "gather", options, mask)
            assert not plan.kept[~mask].any()
            np.testing.assert_array_equal(plan.kept, other.kept)
            full = plan.kept.sum() == plan.num_experts * plan.capacity
            assert full or plan.kept[mask].all()


def test_errors():
    gates = jnp.ones((1, 4, 2))
    with pytest.raises(ValueError, match="num_selected_experts = 3 must be between 1 and"):
        dispatch.top_experts_per_item(gates, 3)
    with pytest.raises(ValueError, match="'onehot'; allowed: dropless, einsum, gather"):
        dispatch.top_experts_per_item(gates, 1, "onehot")
    with pytest.raises(ValueError, match="'dropless' has no capacity"):
        dispatch.top_items_per_expert(gates, "dropless")
    with pytest.raises(ValueError, match="batch_priority = True orders tokens that choose"):
        dispatch.top_items_per_expert(gates, options=DispatcherOptions(batch_priority=True))
    with pytest.raises(ValueError, match="capacity_factor = 0"):
        dispatch.compute_capacity(8, 2, 0)
