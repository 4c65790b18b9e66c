"""Training and evaluation steps: meshes, accumulation, averages, masks."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import tiny

from vmoe_prc.errors import RunError
from vmoe_prc.evaluation.evaluator import EvaluationContext
from vmoe_prc.evaluation.splits import evaluate, split_evaluator
from vmoe_prc.evaluation.step import make_eval_step
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime import memory
from vmoe_prc.runtime import mesh as mesh_lib
from vmoe_prc.steps.state import abstract_train_state, create_train_state
from vmoe_prc.steps.train import make_train_step

PRC = {"name": "prc", "pair_class_tokens": True}
SOFTMAX = {"name": "softmax_xent"}


STATES = {}


def setup(mesh=None, model=None, use_ema=False, optimizer=tiny.OPTIMIZER, **options):
    model = model or tiny.tiny_model()
    mesh = mesh or mesh_lib.create_mesh(1, jax.devices()[:1])
    key = repr((mesh, model, use_ema, optimizer))
    optimizer = create_optimizer(total_steps=10, **optimizer)
    shape = (16, 32, 32, 3)
    with jax.set_mesh(mesh):
        # No step here donates its state, so that tests share it.
        if key not in STATES:
            abstract = abstract_train_state(model, optimizer, shape, mesh, tiny.RULES, use_ema)
            STATES[key] = create_train_state(model, optimizer, shape, 0, abstract)
        step = make_train_step(model, optimizer, **{"loss": SOFTMAX, **options})
    return mesh, STATES[key], jax.jit(step)


def take_steps(made, batches):
    """Trains on batches with what `setup` has made; returns the last state and all metrics."""
    mesh, state, step = made
    history = []
    with jax.set_mesh(mesh):
        for batch in batches:
            batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
            state, metrics = step(state, batch)
            history.append(metrics)
    return jax.device_get((state, history))


def run(batches, **options):
    return take_steps(setup(**options), batches)


@functools.cache
def reference(kind):
    return run([tiny.two_view_batch(seed=i) for i in range(3)], **options(kind))


def options(kind, dispatcher="gather"):
    if kind == "prc":
        return {"model": tiny.tiny_model(dispatcher=dispatcher), "consistency": PRC}
    router = {"num_selected_experts": 1, "dispatcher": {"name": dispatcher, "batch_priority": True}}
    return {
        "model": tiny.tiny_model(num_experts=8, router=router),
        "balance": {"importance_loss_weight": 0.1, "load_loss_weight": 0.1},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dispatcher", "mesh_shape", "shard_kernels"),
    [
        ("prc", "gather", (8, 1), False),
        ("prc", "einsum", (4, 2), False),
        ("prc", "gather", (2, 4), True),
        ("v-moe", "gather", (4, 2), False),
        ("v-moe", "einsum", (1, 8), False),
    ],
)
def test_eight_devices_equal_one(kind, dispatcher, mesh_shape, shard_kernels):
    expected_state, expected = reference(kind)
    mesh = mesh_lib.create_mesh(mesh_shape[1])
    assert tuple(mesh.shape.items()) == (("data", mesh_shape[0]), ("expert", mesh_shape[1]))
    batches = [tiny.two_view_batch(seed=i) for i in range(3)]
    arguments = options(kind, dispatcher)
    arguments["model"] = arguments["model"].clone(shard_kernels=shard_kernels)
    state, history = run(batches, mesh=mesh, **arguments)
    assert history[0].keys() == expected[0].keys()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, history, expected)
    # The moments hold the gradients of all steps.
    jax.tree.map(close, state.opt_state, expected_state.opt_state)
    jax.tree.map(close, state.params, expected_state.params)


def test_expert_weights_moments_and_averages_are_split_over_the_expert_axis():
    _, state, _ = setup(mesh=mesh_lib.create_mesh(2), use_ema=True)
    split = {name for name, x in named_leaves(state) if not x.is_fully_replicated}
    assert len(split) == 3 * 4  # of two dense layers
    assert all("encoderblock_1/Moe/Mlp/Dense_" in name for name in split)


def test_kernels_moments_and_averages_are_split_over_all_devices_on_request():
    model = tiny.tiny_model().clone(shard_kernels=True)
    _, state, _ = setup(mesh=mesh_lib.create_mesh(2), model=model, use_ema=True)
    parts = {
        name: x.size // x.addressable_shards[0].data.size
        for name, x in named_leaves(state)
        if "Moe/Mlp/" not in name
    }
    assert {name for name, n in parts.items() if n > 1} == {n for n in parts if "kernel" in n}
    assert set(parts.values()) == {1, 8}


def named_leaves(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_prc_metrics_and_gradient():
    state, history = reference("prc")
    metrics = history[0]
    assert metrics["encoderblock_1/num_pairs"] > 20
    total = metrics["main_loss"] + metrics["auxiliary_loss"]
    np.testing.assert_allclose(metrics["total_loss"], total, rtol=1e-6)
    prc = 5e-3 * metrics["encoderblock_1/diagonal"] + 5e-2 * metrics["encoderblock_1/off_diagonal"]
    np.testing.assert_allclose(metrics["auxiliary_loss"], prc, rtol=1e-5)
    assert state.step == 3


@pytest.mark.slow
def test_order_of_the_images_does_not_matter_without_capacity_limits():
    model = tiny.tiny_model(
        dropout_rate=0.0,
        router={
            "num_selected_experts": 2,
            "noise_std": 0.0,
            "dispatcher": {"name": "gather", "capacity_factor": 4.0},
        },
    )
    batch = tiny.two_view_batch()
    order = np.random.default_rng(0).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    _, [a] = run([batch], model=model, consistency=PRC)
    _, [b] = run([shuffled], model=model, consistency=PRC)
    for name in ("main_loss", "encoderblock_1/diagonal", "global_norm/grads"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


@pytest.mark.slow
def test_microsteps_average_the_gradients_of_the_parts():
    model = tiny.tiny_model(
        dropout_rate=0.0, router={"noise_std": 0.0, "dispatcher": {"capacity_factor": 9.0}}
    )
    batch = tiny.one_view_batch()
    whole_state, [whole] = run([batch], model=model)
    parts_state, [parts] = run([batch], model=model, microsteps=4)
    np.testing.assert_allclose(parts["main_loss"], whole["main_loss"], rtol=1e-5)
    np.testing.assert_allclose(parts["global_norm/grads"], whole["global_norm/grads"], rtol=1e-4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5),
        parts_state.opt_state,
        whole_state.opt_state,
    )


@pytest.mark.slow
def test_average_of_the_parameters():
    mesh, state, step = setup(use_ema=True, ema_decay=0.9)
    start = jax.device_get(state.params)
    with jax.set_mesh(mesh):
        state, _ = step(state, tiny.one_view_batch())
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, start, state.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        state.eval_params,
        expected,
    )


@pytest.mark.slow
def test_same_seed_same_steps_and_another_seed_another():
    batches = [tiny.one_view_batch()]
    _, [a] = run(batches, seed=1)
    _, [b] = run(batches, seed=1)
    _, [c] = run(batches, seed=2)
    assert a == b
    assert a["encoderblock_1/load_loss"] != c["encoderblock_1/load_loss"]


@pytest.mark.slow
def test_random_pairs_are_drawn_anew_each_step_and_number_as_many():
    batch = tiny.two_view_batch()
    _, matched = reference("prc")
    made = setup(consistency=PRC | {"pairs": "random"})
    _, history = take_steps(made, [batch, batch])
    block = "encoderblock_1"
    assert history[0][f"{block}/num_pairs"] == matched[0][f"{block}/num_pairs"]
    assert history[0][f"{block}/diagonal"] != matched[0][f"{block}/diagonal"]
    _, again = take_steps(made, [batch])
    assert again[0] == history[0]


@pytest.mark.slow
def test_biases_follow_the_loads_and_no_optimiser():
    router = {"name": "BiasBalancedRouter", "num_selected_experts": 1, "bias_rate": 0.5}
    optimizer = {"name": "adam", "learning_rate": 0.1, "weight_decay": 0.1}
    model = tiny.tiny_model(router=router)
    state, [metrics] = run([tiny.one_view_batch()], model=model, optimizer=optimizer)
    [bias] = [x for name, x in named_leaves(state.params) if name.endswith("balance_bias")]
    # One step of +0.5, -0.5 or, for an expert of mean load, 0.
    assert set(bias) <= {-0.5, 0.0, 0.5}
    assert bias.min() < 0 < bias.max() and metrics["skipped_steps"] == 0


@pytest.mark.slow
def test_mixup_mixes_labels():
    options = {"concentration": 10.0, "size": 2, "granularity": "batch"}
    _, [metrics] = run([tiny.one_view_batch()], mixup_options=options)
    _, [plain] = run([tiny.one_view_batch()])
    assert metrics["main_loss"] == pytest.approx(plain["main_loss"], rel=1e-5)  # zero head
    assert metrics["global_norm/grads"] != plain["global_norm/grads"]


def trained_params():
    state, _ = reference("prc")
    return state.params


def test_evaluation_counts_each_image_once_whatever_the_batches():
    # One image a group: what else is in the batch cannot matter.
    model = tiny.tiny_model(deterministic=True, group_size=17)
    eval_step = jax.jit(make_eval_step(model, SOFTMAX))
    data = jax.tree.map(np.asarray, tiny.two_view_batch(12))
    params = trained_params()

    def batch(start, size):
        count = min(size, 12 - start)

        def fill(x):
            rows = x[start : start + count]
            return np.concatenate([rows, np.ones((size - count, *x.shape[1:]), x.dtype)])

        return jax.tree.map(
            jnp.asarray, {**jax.tree.map(fill, data), "mask": np.arange(size) < count}
        )

    def batches(size):
        return [batch(start, size) for start in range(0, 12, size)]

    whole = evaluate(eval_step, params, batches(12))
    assert whole["images"] == 24
    for size in (5, 8):
        parts = evaluate(eval_step, params, batches(size))
        assert parts == pytest.approx(whole, rel=1e-5)


CROWDED = [
    {"name": "NoisyTopItemsPerExpertRouter"},
    {"num_selected_experts": 2},
    {"num_selected_experts": 2, "dispatcher": {"batch_priority": True}},
]


@pytest.mark.parametrize("router", CROWDED, ids=["expert choice", "top 2", "by priority"])
def test_rows_that_fill_up_a_batch_take_no_place_in_an_expert(router):
    """Two images a group, of which one is padding."""
    dispatcher = {"capacity_factor": 0.5, **router.get("dispatcher", {})}
    model = tiny.tiny_model(deterministic=True, router={**router, "dispatcher": dispatcher})
    step, params, batch = jax.jit(make_eval_step(model, SOFTMAX)), trained_params(), {}
    data = tiny.one_view_batch(8)
    mask = jnp.array([1, 1, 1, 0, 0, 1, 0, 0], bool)
    for fill in (0.0, 1.0, 100.0):
        images = jnp.where(mask[:, None, None, None], data["image"], fill * data["image"])
        batch[fill] = evaluate(step, params, [{**data, "image": images, "mask": mask}])
    assert batch[0.0] == batch[1.0] == batch[100.0]
    assert batch[0.0]["images"] == 4
    assert 0 < batch[0.0]["encoderblock_1/dropped"] < 1


def test_evaluation_leaves_out_images_without_labels():
    model, data = tiny.tiny_model(deterministic=True, group_size=17), tiny.one_view_batch(8)
    step, params = jax.jit(make_eval_step(model, SOFTMAX)), trained_params()
    mask = jnp.ones(8, bool)
    labelled = evaluate(step, params, [{**data, "mask": mask & (jnp.arange(8) < 5)}])
    some = {**data, "labels": jnp.where(jnp.arange(8)[:, None] < 5, data["labels"], 0)}
    metrics = evaluate(step, params, [{**some, "mask": mask}])
    assert metrics["images"] == 8
    assert metrics["accuracy"] == labelled["accuracy"]
    assert metrics["loss"] == pytest.approx(labelled["loss"], rel=1e-6)
    none = evaluate(step, params, [{**data, "labels": 0 * data["labels"], "mask": mask}])
    assert not {"accuracy", "loss"} & none.keys()


def test_images_without_labels_can_count_as_wrong():
    """V-MoE's program divides by all images that are no padding."""
    model, data = tiny.tiny_model(deterministic=True, group_size=17), tiny.one_view_batch(8)
    params, mask = trained_params(), jnp.arange(8) < 7
    logits, _ = jax.jit(model.apply)({"params": params}, data["image"])
    predictions = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    labels = jnp.where(jnp.arange(8)[:, None] < 5, predictions, 0)
    batch = {**data, "labels": labels, "mask": mask}
    loss = {"name": "sigmoid_xent"}
    step = jax.jit(make_eval_step(model, loss))
    as_wrong = evaluate(step, params, [batch], "wrong")
    assert as_wrong["accuracy"] == pytest.approx(5 / 7)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1)[:7]
    assert as_wrong["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert evaluate(step, params, [batch])["accuracy"] == 1


def test_evaluation_metrics_against_the_model_itself():
    model = tiny.tiny_model(deterministic=True)
    params, data = trained_params(), tiny.two_view_batch(8)
    step = jax.jit(make_eval_step(model, SOFTMAX))
    metrics = evaluate(step, params, [{**data, "mask": jnp.ones(8, bool)}])
    images = data["image"].reshape(-1, 32, 32, 3)
    logits, routings = jax.jit(model.apply)({"params": params}, images)
    labels = jnp.repeat(data["labels"], 2, axis=0)
    loss = optax.softmax_cross_entropy(logits, labels).mean()
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    routing = routings["encoderblock_1"]
    assert metrics["encoderblock_1/dropped"] == pytest.approx(1 - routing.kept.mean())
    kept = np.asarray(routing.experts)[np.asarray(routing.kept)]
    load = [metrics[f"encoderblock_1/load/{e}"] for e in range(4)]
    np.testing.assert_allclose(load, np.bincount(kept, minlength=4) / len(kept), rtol=1e-6)
    assert metrics["top1"] == metrics["encoderblock_1/top1"]
    assert 0 < metrics["top2"] <= metrics["top2_unordered"] <= metrics["overlap"] <= 1


class OneBatch:
    """A split of one batch."""

    spec, value_range, class_names = {}, (-1.0, 1.0), None

    def batches(self):
        yield {**tiny.one_view_batch(8), "mask": jnp.ones(8, bool)}


class HalfLabelled(OneBatch):
    """Of its images only the first half has labels."""

    def batches(self):
        for batch in super().batches():
            yield {**batch, "labels": batch["labels"] * (jnp.arange(8) < 4)[:, None]}


def evaluator_of(split, **treatments):
    """Evaluates a split under several names, by what becomes of images without a label."""
    sections = {name: {"unlabelled": treatment} for name, treatment in treatments.items()}
    context = EvaluationContext(
        ml_collections.ConfigDict({"loss": SOFTMAX, "dataset": sections}),
        tiny.tiny_model(deterministic=True),
        mesh_lib.create_mesh(1, jax.devices()[:1]),
        dict.fromkeys(treatments, split),
        lambda *section: split,
    )
    return split_evaluator(context)


def test_each_split_says_what_becomes_of_images_without_a_label():
    metrics = evaluator_of(HalfLabelled(), a="left_out", b="wrong")(trained_params())
    assert metrics["a/accuracy"] > 0
    assert metrics["b/accuracy"] == pytest.approx(metrics["a/accuracy"] / 2)


def test_an_evaluation_that_does_not_fit_the_memory_is_one_line(monkeypatch):
    evaluate_splits = evaluator_of(OneBatch(), test="left_out")
    monkeypatch.setattr(memory, "host_memory", lambda: 2**16)
    with pytest.raises(RunError, match="out of memory: a step of training or evaluation needs"):
        evaluate_splits(trained_params())
    monkeypatch.undo()
    assert evaluate_splits(trained_params())["test/images"] == 8


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(make_eval_step(tiny.tiny_model(True), SOFTMAX), {}, [])


def one_block():
    """A model of one block, which has experts."""
    model = tiny.tiny_model(layers=(0,))
    return model.clone(encoder={**model.encoder, "num_layers": 1})


def overflowing(batch):
    return batch | {"image": batch["image"].at[3].set(jnp.nan)}


@pytest.fixture(params=["cpu", "accelerator"])
def platform(request, monkeypatch):
    """CPUs and accelerators run programs of their own; here both run on the CPU."""
    if request.param == "accelerator":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, cpu, default: default(x))


@pytest.mark.usefixtures("platform")
def test_a_step_that_is_not_finite_changes_only_the_counters():
    """Updates, their learning rate and the average are as if its batch were not there."""
    good = [tiny.one_view_batch(seed=i) for i in range(3)]
    made = setup(model=one_block(), use_ema=True, ema_decay=0.9)
    state, history = take_steps(made, [good[0], overflowing(good[1])])
    before, _ = take_steps(made, [good[0]])
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (2, 1, 1)
    assert np.isnan(history[1]["total_loss"]) and history[1]["skipped_steps"] == 1
    for part in ("params", "opt_state", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    state, history = take_steps(made, [good[0], overflowing(good[1]), good[2]])
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (3, 1, 0)
    assert not np.array_equal(state.params["head"]["bias"], before.params["head"]["bias"])


@pytest.mark.slow
@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(
    "optimizer",
    [
        {**tiny.OPTIMIZER, "learning_rate": 1e30},
        {**tiny.OPTIMIZER, "learning_rate": float("nan")},
        {"name": "adam", "learning_rate": 0.1, "b2": 1.0},
    ],
    ids=["overflow", "no rate", "no decay of moments"],
)
def test_an_update_that_ruins_the_parameters_is_skipped(optimizer):
    """The loss and its gradients are finite, and the parameters after the update are not."""
    made = setup(model=one_block(), optimizer=optimizer, use_ema=True, ema_decay=0.9)
    start, _ = take_steps(made, [])
    state, [metrics] = take_steps(made, [tiny.one_view_batch()])
    assert np.isfinite(metrics["total_loss"]) and np.isfinite(metrics["global_norm/grads"])
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (1, 1, 1)
    for part in ("params", "opt_state", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(start, part))


@pytest.mark.slow
@pytest.mark.usefixtures("platform")
def test_too_many_steps_in_a_row_stop_the_state_at_the_last_of_them():
    good = tiny.one_view_batch()
    bad = overflowing(good)
    made = setup(model=one_block(), max_skipped_steps=2)
    state, _ = take_steps(made, [good, bad, good, bad, bad, good, bad])
    before, _ = take_steps(made, [good, bad, good])
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (5, 3, 2)
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)


@pytest.mark.compiler
@pytest.mark.parametrize("accelerator", ["cuda", "tpu"])
def test_no_step_on_an_accelerator_branches(accelerator):
    """A branch on a GPU waits until the host has read its condition."""
    _, state, step = setup(model=one_block())
    traced = step.trace(state, tiny.one_view_batch())
    # Other cases have constant indices, and vanish.
    branch = re.compile(
        r"(%\d+) = stablehlo\.convert .* : \(tensor<i1>\) -> tensor<i32>\n"
        r'.* = "stablehlo\.case"\(\1\)'
    )
    assert branch.search(traced.lower().as_text())
    assert not branch.search(traced.lower(lowering_platforms=(accelerator,)).as_text())
