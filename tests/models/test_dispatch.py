"""Dispatch against the golden arrays; equality of the methods; properties of the plan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
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


@dataclasses.dataclass(frozen=True)
class Problem:
    """The part of a problem that is compiled; each is compiled once, for all seeds."""

    shape: tuple[int, int, int]  # G, S, E
    k: int
    capacity_factor: float
    batch_priority: bool = False
    expert_choice: bool = False

    def plan(self, gates, method):
        options = DispatcherOptions(
            capacity_factor=self.capacity_factor, batch_priority=self.batch_priority
        )
        if self.expert_choice:
            return dispatch.top_items_per_expert(gates, method, options)
        return dispatch.top_experts_per_item(gates, self.k, method, options)

    def draw(self, seed):
        rng = np.random.default_rng(seed)
        gates = scipy.special.softmax(rng.normal(size=self.shape), axis=-1)
        x = rng.normal(size=(*self.shape[:2], 5))
        return gates.astype(np.float32), x.astype(np.float32)


PROBLEMS = [
    Problem((2, 19, 6), k=2, capacity_factor=1.0),
    Problem((3, 12, 5), k=3, capacity_factor=0.3, batch_priority=True),
    Problem((2, 20, 4), k=4, capacity_factor=1.7, batch_priority=True),  # k = E
    Problem((1, 9, 3), k=1, capacity_factor=5.0),  # more slots than tokens
    Problem((2, 1, 1), k=1, capacity_factor=1.0),  # one token, one expert
    Problem((3, 16, 6), k=1, capacity_factor=0.3, expert_choice=True),
    Problem((2, 11, 3), k=1, capacity_factor=1.7, expert_choice=True),
]
seeds = st.integers(0, 1000)


@functools.partial(jax.jit, static_argnums=(0, 1))
def plan(problem, method, gates):
    return problem.plan(gates, method)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(problem, method, gates, x):
    return run(problem.plan(gates, method), x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(problem, method, gates, x):
    def loss(gates, x):
        out = run(problem.plan(gates, method), x)
        return jnp.sum(jnp.sin(out)), out

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(gates, x)


@pytest.mark.parametrize("problem", PROBLEMS)
@given(seed=seeds)
def test_methods_agree_with_gradients(problem, seed):
    inputs = problem.draw(seed)
    results = (jax.tree.leaves(gradients(problem, method, *inputs)) for method in METHODS)
    for einsum, gather in zip(*results, strict=True):
        np.testing.assert_allclose(einsum, gather, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
@given(seed=seeds)
def test_no_slot_is_taken_twice_and_none_wasted(problem, seed):
    made = plan(problem, "gather", problem.draw(seed)[0])
    for experts, slots in zip(np.asarray(made.experts), np.asarray(made.slots), strict=True):
        kept = slots < made.capacity
        taken = (experts * made.capacity + slots)[kept]
        assert len(set(taken.tolist())) == len(taken)
        demand = np.bincount(experts.ravel(), minlength=made.num_experts)
        load = np.bincount(experts[kept], minlength=made.num_experts)
        np.testing.assert_array_equal(load, np.minimum(demand, made.capacity))


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if problem.shape[0] > 1])
@given(seed=seeds)
def test_groups_are_independent(problem, seed):
    gates, x = problem.draw(seed)
    order = np.random.default_rng(seed).permutation(gates.shape[0])
    expected = np.asarray(apply(problem, "gather", gates, x))[order]
    np.testing.assert_allclose(expected, apply(problem, "gather", gates[order], x[order]))


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_moves_data_in_bfloat16_and_restores_the_dtype(method):
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 8, 4)))
    x = jax.random.normal(jax.random.key(1), (1, 8, 3))
    top = jax.jit(dispatch.top_experts_per_item, static_argnums=(1, 2, 3))
    send, back = jax.jit(lambda plan, x: plan.dispatch(x)), jax.jit(lambda plan, x: plan.combine(x))
    exact = top(gates, 1, method, UNLIMITED)
    rounding = top(gates, 1, method, dataclasses.replace(UNLIMITED, bfloat16=True))
    sent = send(rounding, x)
    assert sent.dtype == jnp.float32
    rounded = send(exact, x.astype(jnp.bfloat16)).astype(jnp.float32)
    np.testing.assert_array_equal(sent, rounded)
    # Weights and sums stay float32: only what is sent back is rounded, too.
    outputs = jax.random.normal(jax.random.key(2), rounded.shape)
    expected = back(exact, outputs.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(back(rounding, outputs), expected, rtol=1e-6, atol=1e-7)


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
        chosen = Problem(gates.shape, k=2, capacity_factor=factor)
        choosing = dataclasses.replace(chosen, expert_choice=True)
        # Capacities are shapes.
        found = [
            jax.eval_shape(functools.partial(problem.plan, method="gather"), gates)
            for problem in (chosen, choosing)
        ]
        assert found[0].capacity == capacity and found[1].capacity <= 24


def test_padding_takes_no_slots():
    """The kept tokens are the same as in the group without its padding."""
    gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 24, 4)))
    mask = np.arange(24)[None] % 3 > 0
    for make, k in ((dispatch.top_experts_per_item, (2,)), (dispatch.top_items_per_expert, ())):
        make = jax.jit(make, static_argnums=range(1, 3 + len(k)))
        for options in (DispatcherOptions(), DispatcherOptions(capacity_factor=9.0)):
            plan = make(gates, *k, "gather", options, mask)
            # As likely to be chosen as any other token, were it not for the mask.
            loud = jnp.where(mask[..., None], gates, gates**0.1)
            other = make(loud, *k, "gather", options, mask)
            kept = np.asarray(plan.kept)
            assert not kept[~mask].any()
            np.testing.assert_array_equal(kept, other.kept)
            assert kept.sum() == plan.num_experts * plan.capacity or kept[mask].all()


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
