"""The compiled train step sends what the formula of docs/PARALLELISM.md says, and no more."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from vmoe_prc.compile.hlo import replica_groups
from vmoe_prc.models.traffic import Traffic, step_traffic
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.mesh import abstract_mesh
from vmoe_prc.steps.state import abstract_train_state

TESTS = pathlib.Path(__file__).parents[1]


def compile_steps(**options):
    """Compiles in another process, which has as many virtual devices as it takes."""
    # The other flags make compilation quick, and change no collective.
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={max(options['devices'])}")
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS]))
    process = subprocess.run(
        [sys.executable, TESTS / "compiled_step.py", json.dumps(options)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def devices_of(axes, mesh):
    """Groups of devices that differ in their places along these axes only."""
    ids = np.arange(np.prod(list(mesh.values()))).reshape(tuple(mesh.values()))
    taking_part = [i for i, name in enumerate(mesh) if name in axes]
    ids = np.moveaxis(ids, taking_part, range(-len(taking_part), 0))
    return ids.reshape(-1, np.prod([mesh[name] for name in axes])).tolist()


def measured(step):
    """Arrays and bytes by (collective, groups of devices); the number of scalars apart."""
    totals, scalars = collections.defaultdict(lambda: [0, 0]), 0
    for collective in step["collectives"]:
        for shape, size in zip(collective["shapes"], collective["bytes"], strict=True):
            if not shape:
                assert collective["kind"] == "all-reduce"
                scalars += 1
                continue
            total = totals[collective["kind"], str(collective["groups"])]
            total[0] += 1
            total[1] += size
    return dict(totals), scalars


def expected(step):
    totals = collections.defaultdict(lambda: [0, 0])
    for row in step["traffic"]:
        groups = devices_of(row["axes"], step["mesh"])
        total = totals[row["collective"], str(groups)]
        total[0] += row["arrays"]
        total[1] += row["bytes"]
    return dict(totals)


def operations(step):
    return collections.Counter(c["kind"] for c in step["collectives"])


def close(values, tolerance):
    return max(values) <= (1 + tolerance) * min(values)


@pytest.mark.slow
def test_what_is_sent_and_that_nothing_grows_with_the_devices():
    steps = compile_steps(
        devices=[8, 32, 64], partitions=4, dispatcher="gather", shard_kernels=False
    )
    assert [step["mesh"] for step in steps] == [{"data": n, "expert": 4} for n in (2, 8, 16)]
    for step in steps:
        totals, scalars = measured(step)
        assert totals == expected(step)
        # No other kind: above all, no all-gather of the experts' or any other arrays.
        assert operations(step) == {"all-to-all": 4, "all-reduce": 6}
        assert scalars <= 4 * step["num_params"]
    for name in ("arguments", "temporary"):
        assert close([step["bytes"][name] for step in steps], 0.01)
    assert close([step["flops"] for step in steps], 0.01)


@pytest.mark.slow
def test_what_is_sent_when_kernels_are_split_and_that_memory_shrinks():
    steps = compile_steps(devices=[4, 32], partitions=4, dispatcher="einsum", shard_kernels=True)
    for step in steps:
        totals, scalars = measured(step)
        assert totals == expected(step)
        kernels = next(row for row in step["traffic"] if row["collective"] == "all-gather")
        assert operations(step)["all-gather"] == kernels["arrays"] == 13
        assert operations(step)["reduce-scatter"] == kernels["arrays"]
        assert operations(step)["all-to-all"] == 4
        assert scalars <= 4 * step["num_params"]
    arguments = [step["bytes"]["arguments"] for step in steps]
    split = kernels["bytes"] * (1 / 4 - 1 / 32)
    # Parameters, two moments and the average.
    assert arguments[0] - arguments[1] == 4 * split
    # Each device updates fewer parameters.
    assert steps[1]["bytes"]["temporary"] <= steps[0]["bytes"]["temporary"]
    assert steps[1]["flops"] <= steps[0]["flops"]


@pytest.mark.slow
def test_what_is_sent_without_capacity():
    (step,) = compile_steps(devices=[8], partitions=4, dispatcher="dropless", shard_kernels=False)
    totals, scalars = measured(step)
    assert totals == expected(step)
    assert operations(step) == {"all-gather": 5, "reduce-scatter": 3, "all-reduce": 6}
    assert scalars <= 4 * step["num_params"]


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_are_read_however_they_are_written(written, groups):
    assert replica_groups(f"replica_groups={written}, use_global_device_ids=true") == groups


@pytest.mark.parametrize("router", ["NoisyTopExpertsPerItemRouter", "NoisyTopItemsPerExpertRouter"])
def test_traffic_of_a_mesh_by_hand(router):
    """8 groups of 34 tokens on 4 devices; 4 experts, D = 32, MLP 64."""
    options = {"name": router, "dispatcher": {"name": "gather", "capacity_factor": 1.5}}
    model = tiny.tiny_model(router=options).clone(dtype="bfloat16")
    mesh = abstract_mesh(4, 2)
    optimizer = create_optimizer(total_steps=1, **tiny.OPTIMIZER)
    shape = (16, 32, 32, 3)
    params = abstract_train_state(model, optimizer, shape, mesh, tiny.RULES).params
    rows = {row.what: row for row in step_traffic(model, params, mesh, shape, "prc")}
    capacity = 16  # 34 * 1.5 / 4 = 12.75, up to a multiple of 4
    assert rows["tokens"] == Traffic(
        "tokens", "all-to-all", ("expert",), 4, 4 * 2 * 4 * capacity * 32 * 2, 2
    )
    assert rows["gradients of experts"].bytes == 4 * 2 * (2 * 32 * 64 + 32 + 64)
    whole = 4 * sum(x.size for x in jax.tree.leaves(params))
    assert rows["other gradients"].bytes == whole - 2 * rows["gradients of experts"].bytes
    assert rows["S of PRC"].bytes == 64
    assert rows["tokens"].sent == rows["tokens"].bytes / 2
    assert rows["S of PRC"].sent == 2 * 64 * 3 / 4


@pytest.mark.parametrize(("options", "slots"), [({"num_slots": 3}, 3), ({}, 17 // 4)])
def test_soft_moe_sends_the_slots_of_each_image(options, slots):
    router = {"name": "SoftRouter", "dispatcher": {"bfloat16": True}, **options}
    model = tiny.tiny_model(router=router)
    mesh, shape = abstract_mesh(4, 2), (16, 32, 32, 3)
    optimizer = create_optimizer(total_steps=1, **tiny.OPTIMIZER)
    params = abstract_train_state(model, optimizer, shape, mesh, tiny.RULES).params
    rows = {row.what: row for row in step_traffic(model, params, mesh, shape)}
    # Images of a device, experts, slots, D, bytes of bfloat16; four times.
    assert rows["tokens"].bytes == 4 * (4 * 4 * slots * 32 * 2)


def test_a_split_optimizer_scatters_gradients_and_gathers_parameters():
    """Of 4 devices, 2 share an expert; one array has no dimension that 4 devices divide."""
    model, mesh = tiny.tiny_model(), abstract_mesh(4, 2)
    optimizer = create_optimizer(total_steps=1, **tiny.OPTIMIZER)
    shape = (16, 32, 32, 3)
    params = abstract_train_state(model, optimizer, shape, mesh, tiny.RULES).params
    usual, split = (
        {row.what: row for row in step_traffic(model, params, mesh, shape, shard_optimizer=on)}
        for on in (False, True)
    )
    for what, axes in (
        ("gradients of experts", ("data",)),
        ("other gradients", ("data", "expert")),
    ):
        scattered, gathered = split[f"{what}, split"], split[f"{what}, updated parameters"]
        assert (scattered.collective, gathered.collective) == ("reduce-scatter", "all-gather")
        assert scattered.axes == gathered.axes == axes
        assert scattered.bytes == gathered.bytes
        rest = split[what].bytes if what in split else 0
        assert scattered.bytes + rest == usual[what].bytes
        assert scattered.sent + gathered.sent <= usual[what].sent
    # The bias of the head, 10 numbers, is the only array without such a dimension.
    assert split["other gradients"].bytes == 4 * 10 and "gradients of experts" not in split
