"""Every benchmark runs at a tiny size and writes what it says; no time is asserted."""

import json
import math

import pytest

from benchmarks import train_step
from vmoe_prc import recipes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """ViT-Ti of two blocks, the second with experts."""
    monkeypatch.setitem(recipes.SIZES, "Ti", (2, 16, 32, 2))


@pytest.fixture
def run(tmp_path):
    """Runs a benchmark and returns the rows it wrote, all of whose figures are finite."""

    def run(main, *flags):
        path = tmp_path / "out.json"
        main(["--repetitions=1", f"--output={path}", *flags])
        rows = json.loads(path.read_text())["rows"]
        for value in (value for row in rows for value in row.values()):
            assert not isinstance(value, float) or math.isfinite(value)
        return rows

    return run


def test_train_step(run):
    flags = "--model=ViT-Ti/32, E=2", "--image-sizes=64", "--batch-size=8", "--k=2"
    dense, *sparse = run(train_step.main, *flags, "--methods=gather")
    assert dense["arm"] == "dense"
    assert dense["to_dense"] == dense["flops"] == 1
    assert [row["arm"] for row in sparse] == ["V-MoE k=2 gather", "PRC k=2 gather"]
    assert all(row["flops"] > 1 and row["to_padded"] < row["to_ideal"] for row in sparse)
