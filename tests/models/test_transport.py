"""Plans of transport by their definitions, and the routers that choose by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.models.moe import MlpMoeBlock
from vmoe_prc.models.routing.transport import project_on_simplex, sinkhorn_plan, squares_plan
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh

TOKENS, EXPERTS = 12, 4
LOGITS = np.random.default_rng(0).normal(size=(TOKENS, EXPERTS)).astype(np.float32)
GATES = np.asarray(jax.nn.softmax(LOGITS))
ROUTERS = {
    "KLProjectionNoisyTopExpertsPerItemRouter": False,
    "KSparseProjectionTransportTopExpertsPerItemRouter": False,
    "KLProjectionNoisyTopItemsPerExpertRouter": True,
    "KSparseProjectionTransportTopItemsPerExpertRouter": True,
    "SparseProjectionTransportTopItemsPerExpertRouter": True,
}


def test_sinkhorn_scales_rows_and_columns():
    plan = jax.jit(sinkhorn_plan, static_argnums=1)(LOGITS, 200)
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), TOKENS / EXPERTS, rtol=1e-5)
    expected = np.exp(np.float64(LOGITS))
    for _ in range(20):
        expected *= TOKENS / EXPERTS / expected.sum(0)
        expected /= expected.sum(1, keepdims=True)
    few = jax.jit(sinkhorn_plan, static_argnums=1)(LOGITS, 20)
    np.testing.assert_allclose(few, expected, rtol=1e-5)


@pytest.mark.parametrize("largest", [1, 2, 4])
def test_projection(largest):
    values = np.array([0.6, -0.2, 0.9, 0.1], np.float32)
    found = np.asarray(project_on_simplex(values, largest))
    expected = {1: [0, 0, 1, 0], 2: [0.35, 0, 0.65, 0], 4: [0.35, 0, 0.65, 0]}[largest]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def adam_by_hand(similarities, column_sum, largest, maxiter, rate):
    """The semi-dual's gradient steps in NumPy, in double precision."""
    rows, columns = similarities.shape
    potentials, mean, square = np.zeros(rows), np.zeros(rows), np.zeros(rows)

    def plan():
        values = (np.float64(similarities) + potentials[:, None]) / column_sum
        return column_sum * np.stack([simplex(column) for column in values.T], axis=1)

    def simplex(values):
        order = np.argsort(-values)[:largest]
        # The threshold that makes the rest sum to 1, by bisection.
        low, high = values.min() - 1, values.max()
        for _ in range(100):
            middle = (low + high) / 2
            if np.maximum(values[order] - middle, 0).sum() > 1:
                low = middle
            else:
                high = middle
        projected = np.zeros_like(values)
        projected[order] = np.maximum(values[order] - high, 0)
        return projected

    for step in range(1, maxiter + 1):
        gradient = plan().sum(1) - column_sum * columns / rows
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9**step), square / (1 - 0.999**step)
        potentials -= rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return plan()


@pytest.mark.parametrize(
    ("similarities", "column_sum", "largest"),
    [(LOGITS, TOKENS / EXPERTS, TOKENS), (GATES, TOKENS / EXPERTS, 4), (GATES.T, 1.0, 2)],
)
def test_plans_by_squares(similarities, column_sum, largest):
    run = jax.jit(squares_plan, static_argnums=(1, 2, 3, 4))
    few = run(similarities, column_sum, largest, 20, 1e-2)
    expected = adam_by_hand(similarities, column_sum, largest, 20, 1e-2)
    np.testing.assert_allclose(few, expected, atol=1e-4)
    assert ((np.asarray(few) > 0).sum(0) <= largest).all()
    np.testing.assert_allclose(few.sum(0), column_sum, rtol=1e-5)
    row_sum = column_sum * similarities.shape[1] / similarities.shape[0]
    if largest == TOKENS:  # A smooth problem, whose rows come out even in the end.
        many = run(similarities, column_sum, largest, 2000, 1e-2)
        np.testing.assert_allclose(many.sum(1), row_sum, atol=2e-3)


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_choose_by_the_plan_and_weigh_by_the_gates(name):
    options = {} if ROUTERS[name] else {"num_selected_experts": 2}
    dispatcher = {"name": "gather", "capacity_factor": 4.0}
    module = MlpMoeBlock(
        mlp_dim=6,
        num_experts=EXPERTS,
        group_size=TOKENS,
        split_rngs=True,
        router={"name": name, "dispatcher": dispatcher, **options},
    )
    x = jax.random.normal(jax.random.key(0), (2, TOKENS, 8))
    rngs = {"params": jax.random.key(1), "gating": jax.random.key(2)}
    params = jax.jit(module.init)(rngs, x)["params"]

    def outputs(params):
        return module.apply({"params": params}, x, rngs={"gating": jax.random.key(3)})

    (y, routing), gradient = jax.jit(
        lambda p: (outputs(p), jax.grad(lambda p: jnp.sum(outputs(p)[0] ** 2))(p))
    )(params)
    assert np.isfinite(y).all()
    assert (routing.noisy_logits is None) == ("Sparse" in name)
    assert np.abs(gradient["Router"]["dense"]["kernel"]).max() > 0
    best = np.asarray(routing.dispatch_gates).argsort(-1)[..., ::-1]
    k = routing.experts.shape[-1]
    top = np.take_along_axis(np.asarray(routing.dispatch_gates), best[..., :k], -1)
    chosen = np.take_along_axis(np.asarray(routing.dispatch_gates), np.asarray(routing.experts), -1)
    np.testing.assert_allclose(chosen, top, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"router": {"name": "KLProjectionNoisyTopExpertsPerItemRouter"}},
        {"router": {"name": "KSparseProjectionTransportTopItemsPerExpertRouter"}},
        {"ensemble_size": 2},
    ],
    ids=["sinkhorn", "squares", "ensemble"],
)
def test_eight_devices_equal_one(options):
    module = MlpMoeBlock(
        mlp_dim=6,
        num_experts=EXPERTS,
        group_size=TOKENS,
        split_rngs=True,
        deterministic=True,
        **options,
    )
    x = jax.random.normal(jax.random.key(0), (16, TOKENS, 8))
    params = jax.jit(module.init)({"params": jax.random.key(1)}, x)
    outputs, _ = jax.jit(module.apply)(params, x)
    mesh = create_mesh(2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, batch_sharding(mesh))
        on_devices, _ = jax.jit(module.apply)(params, spread)
    np.testing.assert_allclose(on_devices, outputs, rtol=1e-5, atol=1e-6)
