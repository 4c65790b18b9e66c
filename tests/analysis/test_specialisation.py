"""What is counted of the experts, against loops over tokens; how alike they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from vmoe_prc import analyze
from vmoe_prc.analysis.figures.expert_panels import specialisation_figure
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.routing_table import (
    routing_table,
    stream_routing_table,
    write_routing_table,
)
from vmoe_prc.analysis.similarity import (
    expert_outputs,
    hsic,
    similarity_table,
    token_rows,
    weight_similarity,
)
from vmoe_prc.analysis.specialisation import specialisation
from vmoe_prc.workdir.metrics import read_metrics

BLOCK = "encoderblock_1"


def table(num_experts=3, k=2, images=40, tokens=5, seed=0):
    """A routing table of one view and two blocks, in which some choices are dropped."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "image": image,
            "label": image % 4,
            "block": block,
            "token": token,
            "rank": rank + 1,
            "expert": expert,
            "gate": gate,
            "kept": rng.random() < 0.8,
            "entropy": entropy,
        }
        for image in range(images)
        for block in ("a", "b")
        for token in range(tokens)
        for gates in [np.sort(rng.dirichlet(np.ones(num_experts)))[::-1]]
        for entropy in [-(gates * np.log(gates)).sum()]
        for rank, (expert, gate) in enumerate(
            zip(rng.permutation(num_experts)[:k], gates, strict=False)
        )
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


def test_counts_are_those_of_loops():
    rows = table()
    found = specialisation([rows[rows["image"] < 13], rows[rows["image"] >= 13]], 3, 4)
    for block, part in rows.groupby("block"):
        of_block = {name: t[t["block"] == block] for name, t in found._asdict().items()}
        first = part[part["rank"] == 1]
        kept = part[part["kept"]]
        summary = of_block["blocks"].iloc[0]
        assert summary["dropped"] == pytest.approx(1 - part["kept"].mean())
        assert summary["entropy"] == pytest.approx(first["entropy"].mean())
        experts = of_block["experts"].set_index("expert")
        classes = of_block["classes"].set_index(["expert", "label"])["share"]
        similarity = of_block["similarity"].set_index(["expert", "other"])["value"]
        processed = kept.groupby(["image", "token"])["expert"].agg(set)
        for e in range(3):
            assert experts.loc[e, "load"] == pytest.approx((kept["expert"] == e).mean())
            assert experts.loc[e, "first"] == pytest.approx((first["expert"] == e).mean())
            gates = part.loc[part["expert"] == e, "gate"]
            assert experts.loc[e, "gate"] == pytest.approx(gates.mean())
            for label in range(4):
                share = (first.loc[first["label"] == label, "expert"] == e).mean()
                assert classes[e, label] == pytest.approx(share)
            with_e = [s for s in processed if e in s]
            for other in range(3):
                share = np.mean([other in s for s in with_e])
                assert similarity[e, other] == pytest.approx(share)
        assert of_block["entropy"]["share"].sum() == pytest.approx(1)


def test_experts_that_know_the_class_tell_all_of_it():
    rows = table(num_experts=4, k=1)
    rows["expert"] = rows["label"]
    known = specialisation([rows], 4, 4).blocks["class_information"]
    np.testing.assert_allclose(known, np.log(4))
    rows["expert"] = 2
    np.testing.assert_allclose(specialisation([rows], 4, 4).blocks["class_information"], 0)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        specialisation([], 4, 4)


def test_hsic_is_that_of_its_definition():
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    n = 6
    k, m = (f @ f.T * (1 - np.eye(n)) for f in x)
    one = np.ones(n)
    expected = (
        np.trace(k @ m)
        + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))
    assert hsic(jnp.asarray(x))[0, 1] == pytest.approx(expected, rel=1e-4)


def test_hsic_of_independent_features_is_zero_on_average():
    x = np.random.default_rng(1).normal(size=(200, 16, 4))
    values = np.asarray(hsic(jnp.asarray(x)))
    between = values[~np.eye(200, dtype=bool)]
    assert abs(between.mean()) < 0.05 * np.diag(values).mean()


def test_cosines_of_weights():
    kernel = np.array([[[1.0, 0]], [[0, 1]], [[2, 2]]])
    params = {"Dense_0": {"kernel": kernel, "bias": np.ones((3, 2))}}
    expected = [[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5, 0.5**0.5, 1]]
    np.testing.assert_allclose(weight_similarity(params), expected)


@pytest.mark.slow
def test_outputs_are_those_that_the_block_adds_up(run):
    batch = next(iter(run.batches("test")))
    images = batch["image"]
    tokens = 17 * len(images)
    outputs = expert_outputs(run, run.params, images, [BLOCK], np.arange(tokens))[BLOCK]
    apply = functools.partial(
        run.model.apply,
        capture_intermediates=lambda module, _: module.name == "Moe",
        mutable="intermediates",
    )
    (_, routings), captured = jax.jit(apply)({"params": run.params}, images)
    (block_output,) = captured["intermediates"]["Encoder"][BLOCK]["Moe"]["__call__"]
    routing = routings[BLOCK]
    chosen = jax.nn.one_hot(routing.experts, 4) * routing.kept[..., None]
    weights = (chosen.sum(-2) * routing.gates).reshape(tokens, 4)
    expected = jnp.einsum("ne,end->nd", weights, outputs)
    actual = block_output[0].reshape(tokens, -1)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_similarity_of_a_run(run):
    frame = similarity_table(run, "test")
    for _, part in frame.groupby("measure"):
        values = part.pivot(index="expert", columns="other", values="value").to_numpy()
        np.testing.assert_allclose(np.diag(values), 1, atol=1e-5)
        np.testing.assert_allclose(values, values.T, atol=1e-5)
        assert values.shape == (4, 4)
    # Experts began equal, and six steps have not moved them far.
    assert frame["value"].min() > 0.5


def test_tokens_are_those_of_images_that_count(run):
    mask = np.zeros(64, bool)
    mask[[3, 60]] = True
    batch = next(run.batches("test")) | {"mask": mask}
    rows = token_rows(run, batch)
    assert set(rows // 17) == {3, 60} and len(set(rows)) == 2 * 17


@pytest.mark.slow
def test_the_command(finished, run, tmp_path, capsys):
    folder, parquet = tmp_path / "out", tmp_path / "table.parquet"
    workdir = f"--workdir={finished[0]}"
    assert analyze.main(["specialisation", workdir, "--split=test", f"--output={folder}"]) == 0
    assert (folder / f"{BLOCK}.png").read_bytes().startswith(b"\x89PNG")
    names = {"blocks", "experts", "classes", "entropy", "similarity"}
    assert {path.stem for path in folder.glob("*.csv")} == names
    assert str(folder) in capsys.readouterr().out
    similarity = pd.read_csv(folder / "similarity.csv")
    assert set(similarity["measure"]) == {"weights", "outputs", "selection"}

    evaluated = read_metrics(finished[0] / "metrics.jsonl")[-1]
    experts = pd.read_csv(folder / "experts.csv")
    for e, load in zip(experts["expert"], experts["load"], strict=True):
        assert evaluated[f"test/{BLOCK}/load/{e}"] == pytest.approx(load)

    # The same from a file, read part by part.
    assert analyze.main(["table", workdir, "--split=test", f"--output={parquet}"]) == 0
    found = specialisation(stream_routing_table(parquet), 4, 10)
    pd.testing.assert_frame_equal(found.experts, experts, check_dtype=False)


def test_parts_of_a_table_are_the_batches(run, tmp_path):
    path = tmp_path / "table.parquet"
    write_routing_table(run, "test", path)
    columns = ["image", "block", "expert"]
    parts = list(stream_routing_table(path, columns))
    for part, frame in zip(parts, routing_table(run, "test"), strict=True):
        pd.testing.assert_frame_equal(part, frame[columns])
    assert len(parts) > 1


@pytest.mark.parametrize("num_experts", [2, 32])
def test_figures_of_few_and_many_experts(num_experts):
    rows = table(num_experts=num_experts, k=1)
    figure = specialisation_figure(specialisation([rows], num_experts, 4), "a", title="x")
    assert figure.get_suptitle() == "What the experts do \N{EN DASH} a, x"
    drawn = [axes for axes in figure.axes if axes.images]
    assert drawn[0].images[0].get_array().shape == (num_experts, 4)
