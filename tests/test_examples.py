"""The examples of docs/extending.md: one file each adds a part that works like ours."""

import json
import pathlib
import re

import jax
import ml_collections
import numpy as np
import pytest

from vmoe_prc.checkpoints.transfer import transfer
from vmoe_prc.config import complete, override, registry
from vmoe_prc.config.files import read_config_file
from vmoe_prc.models import create_model
from vmoe_prc.train import loop

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def registries_unchanged():
    """Takes back what the examples register, for the tests that walk all choices."""
    with pytest.MonkeyPatch.context() as patch:
        for found in vars(registry).values():
            if isinstance(found, registry.Registry):
                list(found)  # registers our entries
                for name in ("_factories", "_options"):
                    patch.setattr(found, name, dict(getattr(found, name)))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration that uses all examples, for two steps on eight devices."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    splits = {name: {"data_dir": data_dir} for name in ("train", "test")}
    changes = {
        "train_steps": 2,
        "dataset": splits,
        "model": {"encoder": {"moe": {"group_size": 17}}},
        "optimizer": {"learning_rate": {"warmup_steps": 1}},
        "report_progress": {"every_steps": 1},
    }
    recipe = read_config_file(str(ROOT / "examples" / "stripes_config.py"), "--config")
    return complete(override(recipe, changes))


@pytest.mark.slow
def test_a_run_uses_all_of_them(config, tmp_path):
    summary = loop.train_and_evaluate(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    metrics = {name: value for record in records for name, value in record.items()}
    assert 1 / 3 <= metrics["sure/mean"] <= 1
    [cosine] = [value for name, value in metrics.items() if name.endswith("encoderblock_1/cosine")]
    assert 0 < cosine <= 1
    assert "sure" in summary


def test_small_gates_are_dropped_by_the_router(config):
    router = {"threshold": 0.24, "dispatcher": {"capacity_factor": 4.0}}
    config = complete(override(config, {"model": {"encoder": {"moe": {"router": router}}}}))
    model = create_model(config.model.to_dict(), deterministic=True)
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def route(images):
        _, routings = model.init_with_output(jax.random.key(0), images)[0]
        return routings["encoderblock_1"]

    routing = route(images)
    gates = np.take_along_axis(np.asarray(routing.dispatch_gates), routing.experts, axis=-1)
    kept = np.asarray(routing.kept)
    assert kept[..., 0].all()
    np.testing.assert_array_equal(kept[..., 1], gates[..., 1] >= 0.24)
    assert 0 < kept[..., 1].mean() < 1


def test_the_rules_of_the_page_rename_arrays():
    page = (ROOT / "docs" / "extending.md").read_text()
    [code] = [c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "init" in c]
    config = ml_collections.ConfigDict({"initialization": {"prefix": "", "rules": ()}})
    exec(code, {"config": config})
    source = {"backbone/cls": np.ones((1, 1, 8)), "classifier/kernel": np.ones((8, 9))}
    target = {
        "params/cls": jax.ShapeDtypeStruct((1, 1, 8), np.float32),
        "params/head/kernel": jax.ShapeDtypeStruct((8, 3), np.float32),
    }
    rules = config.initialization.rules
    arrays, _ = transfer(source, target, rules, raise_if_target_unmatched=False)
    assert arrays.keys() == {"params/cls"}
