"""Ramps: without drops groups do not matter, with little capacity they do. Capacity curves."""

import numpy as np
import pytest

from vmoe_prc.analysis.capacity import drop_curve
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.ramp import ramp_test
from vmoe_prc.config import ConfigError


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


@pytest.mark.slow
def test_drops_make_the_output_jump_between_groups(run):
    found = ramp_test(run, capacities=(None, 0.5), num_images=4, levels=64)
    by_capacity = found.capacities.set_index("capacity")
    assert by_capacity.loc["dropless", "batch_dependence"] == 0
    assert by_capacity.loc["dropless", "ratio"] == pytest.approx(1, abs=0.3)
    assert by_capacity.loc["0.5", "ratio"] > 2
    dropped = found.positions.pivot(index="capacity", columns="position", values="dropped")
    assert list(dropped.columns) == [0, 1, 2, 3]  # 4 images per group
    assert (dropped.loc["dropless"] == 0).all()
    assert (np.diff(dropped.loc["0.5"]) >= 0).all() and dropped.loc["0.5", 3] > 0.7
    assert dropped.loc["0.5", 0] < 0.3
    curve = found.curves[found.curves["capacity"] == "dropless"]
    assert len(curve) == 64 and curve["level"].iloc[-1] == pytest.approx(0.3)


def test_levels_fill_the_groups_of_all_devices(run):
    with pytest.raises(ConfigError, match="--levels = 40: must be a multiple of 4 images"):
        ramp_test(run, levels=40)


@pytest.mark.slow
def test_capacity(run):
    table = drop_curve(run, "test", capacities=(0.1, 4.0))
    dropless, *limited = table.to_dict("records")
    assert np.isnan(dropless["capacity"]) and dropless["dropped"] == 0
    assert [row["capacity"] for row in limited] == [0.1, 4.0] * 2
    for row in limited:
        if row["capacity"] == 4.0:
            assert row["dropped"] == 0 and row["accuracy"] == dropless["accuracy"]
        else:
            assert row["dropped"] > 0.8
