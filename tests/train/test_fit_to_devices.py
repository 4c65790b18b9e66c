"""One configuration on any number of devices: sizes that are 'auto'."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from small_run import small_config

from vmoe_prc import main
from vmoe_prc.config import ConfigError, complete
from vmoe_prc.runtime.mesh import create_mesh, largest_expert_partitions
from vmoe_prc.train.fit_to_devices import fit_to_devices
from vmoe_prc.workdir.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int


@dataclasses.dataclass(frozen=True)
class TPU(Device):
    slice_index: int


def devices(*hosts):
    """Devices of hosts: one for each host's number."""
    return [Device(i, host) for i, host in enumerate(hosts)]


def config(**changes):
    auto = {"model.encoder.moe.group_size": "auto", "num_expert_partitions": "auto"}
    recipe = small_config("/none")
    with recipe.ignore_type():
        recipe.update_from_flattened_dict(auto | changes)
    return complete(recipe)


# Pairs of views for training, and single images of the same size.
SHAPES = {"train": (32, 2, 16, 16, 3), "test": (64, 16, 16, 3)}
TOKENS = 2 * 2 + 1


@pytest.mark.parametrize(
    ("count", "microsteps", "images"),
    [(1, 1, 8), (8, 1, 8), (16, 1, 4), (32, 1, 2), (64, 1, 1), (8, 2, 4)],
)
def test_groups_are_those_of_the_recipes_or_what_a_device_has(count, microsteps, images):
    fitted = fit_to_devices(config(microsteps=microsteps), SHAPES, devices(*[0] * count))
    assert fitted.model.encoder.moe.group_size == images * TOKENS


def test_images_of_another_size_do_not_count():
    shapes = {**SHAPES, "large": (3, 32, 32, 3)}
    fitted = fit_to_devices(config(), shapes, devices(0))
    assert fitted.model.encoder.moe.group_size == 8 * TOKENS


@pytest.mark.parametrize(
    ("hosts", "num_experts", "partitions"),
    [
        ([0], 32, 1),
        ([0] * 8, 32, 8),
        ([0] * 8, 4, 4),
        ([0] * 6, 32, 2),
        ([0] * 4 + [1] * 4, 32, 4),
    ],
)
def test_experts_are_split_within_a_host(hosts, num_experts, partitions):
    assert largest_expert_partitions(num_experts, devices(*hosts)) == partitions


@pytest.mark.parametrize(
    ("slices_of_hosts", "partitions"),
    [([0, 0, 0, 0, 1, 1, 1, 1], 16), ([0, 0, 1, 1], 8), ([0, 1, 0, 1], 4), ([0] * 3 + [1] * 3, 4)],
)
def test_experts_are_split_within_a_slice_of_tpus(slices_of_hosts, partitions):
    tpus = [
        TPU(4 * host + i, host, index)
        for host, index in enumerate(slices_of_hosts)
        for i in range(4)
    ]
    # JAX lists them in another order.
    assert largest_expert_partitions(32, tpus[::-1]) == partitions
    rows = create_mesh(partitions, tpus[::-1]).devices
    assert all(len({device.slice_index for device in row}) == 1 for row in rows)


def test_numbers_stay():
    fixed = config(**{"model.encoder.moe.group_size": 20, "num_expert_partitions": 2})
    assert fit_to_devices(fixed, SHAPES, devices(0)) is fixed


def test_the_evaluated_model_needs_a_number():
    overrides = {"encoder": {"moe": {"group_size": "auto"}}}
    with pytest.raises(ConfigError, match="group_size = 'auto'"):
        fit_to_devices(config(**{"evaluate.model_overrides": overrides}), SHAPES, devices(0))


SMALL = """
from small_run import small_config

def get_config(digits_dir):
    config = small_config(digits_dir, **{"report_progress.every_steps": 1})
    del config.dataset["test_pairs"]
    config.model.encoder.num_layers = 1
    config.model.encoder.moe.layers = (0,)
    return config
"""


@pytest.mark.slow
def test_one_command_trains_the_same_on_one_and_more_devices(
    tmp_path, digits_dir, monkeypatch, capfd
):
    (tmp_path / "small.py").write_text(SMALL)
    everything, metrics = jax.devices(), {}
    for count in (1, 4):
        monkeypatch.setattr(jax, "devices", lambda count=count: everything[:count])
        workdir = tmp_path / str(count)
        status = main.main(
            [
                f"--workdir={workdir}",
                f"--config={tmp_path / 'small.py'}:{digits_dir}",
                "--config.num_expert_partitions=auto",
                "--config.model.encoder.moe.group_size=auto",
            ]
        )
        printed = capfd.readouterr().err
        assert status == 0, printed
        saved = json.loads((workdir / "config.json").read_text())
        numbers = saved["num_expert_partitions"], saved["model"]["encoder"]["moe"]["group_size"]
        assert numbers == (count, 8 * 17)  # images, tokens
        for name, number in zip(("num_expert_partitions", "moe.group_size"), numbers, strict=True):
            assert re.search(rf"{count} devices: \S*{name} = {number}\b", printed)
        metrics[count] = read_metrics(workdir / "metrics.jsonl")
    for record, expected in zip(metrics[4], metrics[1], strict=True):
        names = [name for name in expected if name.endswith("loss")]
        assert names
        for name in names:
            np.testing.assert_allclose(record[name], expected[name], rtol=1e-5, atol=1e-6)
