"""The routing table of a trained run, against the model and against the evaluator."""

import numpy as np
import pytest

from vmoe_prc import analyze
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.routing_table import read_routing_table, routing_table
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.config import ConfigError
from vmoe_prc.workdir.metrics import read_metrics

BLOCK = "encoderblock_1"


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


@pytest.fixture(scope="module")
def table(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "pairs.parquet"
    arguments = ["table", f"--workdir={finished[0]}", "--split=test_pairs", f"--output={path}"]
    assert analyze.main(arguments) == 0
    return read_routing_table(path)


def agreement_of(table):
    """The metrics of the specification, in plain NumPy."""
    wide = table.pivot(index=["block", "image", "view", "token"], columns="rank", values="expert")
    first = table[(table["rank"] == 1) & (table["match"] >= 0)]
    keys = ["block", "image"]
    a = wide.loc[list(first[keys].assign(v=0, t=first["token"]).itertuples(index=False))]
    b = wide.loc[list(first[keys].assign(v=1, t=first["match"]).itertuples(index=False))]
    a, b = a.to_numpy(), b.to_numpy()
    same_set = np.sort(a, axis=1) == np.sort(b, axis=1)
    return {
        "top1": np.mean(a[:, 0] == b[:, 0]),
        "top2": np.mean((a == b).all(axis=1)),
        "top2_unordered": np.mean(same_set.all(axis=1)),
        "overlap": np.mean([len(set(x) & set(y)) / 2 for x, y in zip(a, b, strict=True)]),
    }


def test_every_token_has_its_rows(table):
    assert len(table) == 359 * 2 * 17 * 2
    assert not table.duplicated(["image", "view", "block", "token", "rank"]).any()
    assert set(table["image"]) == set(range(359))
    assert table["block"].cat.categories.tolist() == [BLOCK]
    patches = table[table["token"] > 0]
    assert (patches["token"] == 1 + 4 * patches["row"] + patches["col"]).all()
    assert (table.loc[table["token"] == 0, ["row", "col", "match"]] == -1).all(axis=None)
    assert (table.loc[table["view"] == 1, "match"] == -1).all()
    assert table["label"].between(0, 9).all() and table["label"].nunique() == 10


def test_gates_fall_with_the_rank(table):
    gates = table.pivot(index=["image", "view", "token"], columns="rank", values="gate")
    assert (gates[1] >= gates[2]).all() and (gates.sum(axis=1) <= 1 + 1e-5).all()
    assert table["entropy"].between(0, np.log(4) + 1e-5).all()


def test_agreement_is_that_of_the_evaluator_and_of_the_command(finished, table, tmp_path, capsys):
    workdir, _ = finished
    expected = agreement_of(table)
    evaluated = read_metrics(workdir / "metrics.jsonl")[-1]
    output = f"--output={tmp_path / 'agreement.csv'}"
    assert analyze.main(["agreement", f"--workdir={workdir}", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, value in expected.items():
        assert evaluated[f"test_pairs/{name}"] == pytest.approx(value, abs=1e-6)
        assert evaluated[f"test_pairs/{name}_low"] < value < evaluated[f"test_pairs/{name}_high"]
        row = next(x.split() for x in lines if x.split()[:2] == ["all", name])
        assert row[2] == f"{100 * value:.2f}"
        assert row[3] == f"{100 * evaluated[f'test_pairs/{name}_low']:.2f}"


def test_fewer_choices_and_one_view(run):
    frames = list(routing_table(run, "test", k=1))
    assert sum(map(len, frames)) == 359 * 17
    assert set(frames[0]["view"]) == {0} and set(frames[0]["rank"]) == {1}
    assert (frames[0]["match"] == -1).all()


def test_load_is_that_of_the_evaluator(finished, run):
    kept = np.zeros(4)
    for frame in routing_table(run, "test"):
        kept += np.bincount(frame["expert"][frame["kept"]], minlength=4)
    evaluated = read_metrics(finished[0] / "metrics.jsonl")[-1]
    for e in range(4):
        assert evaluated[f"test/{BLOCK}/load/{e}"] == pytest.approx(kept[e] / kept.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, "--k = 3: .* selects 2 experts"),
        ({"blocks": ["encoderblock_0"]}, "has no experts.*encoderblock_1"),
        ({"split": "val"}, "--split = 'val': no such split"),
    ],
)
def test_errors(run, options, message):
    with pytest.raises(ConfigError, match=message):
        next(routing_table(run, **{"split": "test", **options}))


def test_agreement_needs_two_views(finished, capsys):
    assert analyze.main(["agreement", f"--workdir={finished[0]}", "--split=test"]) == 2
    assert "needs two views" in capsys.readouterr().err


def test_directories_without_a_run_or_a_checkpoint(finished, tmp_path):
    with pytest.raises(ConfigError, match="not the work directory of a run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text((finished[0] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="not a run's work directory"):
        open_run(tmp_path)
