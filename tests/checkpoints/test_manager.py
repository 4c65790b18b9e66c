"""Saving and restoring on real files: exact, onto other meshes, past damaged checkpoints."""

import contextlib
import functools
import json
import resource

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vmoe_prc.checkpoints.manager import Checkpointer, CheckpointError, restore_params, restore_part
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.mesh import create_mesh


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema_params: dict | None = None


def make_state(step, size=8, mesh=None):
    kernel = jax.random.normal(jax.random.key(step), (size, 3))
    if mesh is not None:
        kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("expert")))
    return State(
        step=jnp.int32(step),
        params={"a": {"kernel": kernel}, "half": kernel.astype(jnp.bfloat16)},
        opt_state=({"mu": kernel / 3}, jnp.int32(step)),
    )


def abstract(state, mesh=None, spec=()):
    sharding = NamedSharding(mesh or create_mesh(1, jax.devices()[:1]), PartitionSpec(*spec))
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding if x.ndim == 2 else replicated
        ),
        state,
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_is_exact(tmp_path):
    state = make_state(5)
    with Checkpointer(tmp_path / "new" / "run") as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(5, state)
        checkpointer.wait()
        restored = checkpointer.restore(abstract(state))
    assert_equal(restored, state)
    assert restored.params["half"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("test/accuracy", {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.1}),
        ("test/loss", {1: 2.3, 2: 0.1, 3: 2.2, 4: 2.1, 5: 2.4}),  # The lowest is the best.
    ],
)
def test_keeps_the_last_and_the_best(tmp_path, metric, values):
    with Checkpointer(tmp_path, keep_last=2, keep_best=1, best_metric=metric) as c:
        for step, value in values.items():
            c.save(step, make_state(step), {metric: value})
        c.wait()
        assert c.steps() == [2, 4, 5]
        assert c.restore(abstract(make_state(0))).step == 5
        assert c.restore(abstract(make_state(0)), step=2).step == 2


def test_keeps_multiples_of_a_number_of_steps(tmp_path):
    with Checkpointer(tmp_path, keep_last=1, keep_steps_multiple_of=4) as c:
        for step in (1, 4, 6, 8, 9, 11):
            c.save(step, make_state(step))
        c.wait()
        assert c.steps() == [4, 8, 11]
        assert c.restore(abstract(make_state(0)), step=4).step == 4


def test_the_best_by_a_loss_is_the_lowest(tmp_path):
    """A NaN is worst, and a step without the metric cannot be the best."""
    losses = {1: 2.31, 2: 2.30, 3: float("nan"), 4: 2.32, 5: None, 6: 2.33}
    with Checkpointer(tmp_path, keep_last=1, keep_best=1, best_metric="test/loss") as c:
        for step, value in losses.items():
            c.save(
                step,
                make_state(step),
                {"test/accuracy": 1.0} | ({"test/loss": value} if value else {}),
            )
        c.wait()
        assert c.steps() == [2, 6]


def test_restores_onto_another_mesh(tmp_path):
    state = make_state(1, mesh=create_mesh(4))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        mesh = create_mesh(2, jax.devices()[:2])
        restored = checkpointer.restore(abstract(state, mesh, ("expert",)))
    assert restored.params["a"]["kernel"].sharding.mesh == mesh
    assert restored.params["a"]["kernel"].addressable_shards[0].data.shape == (4, 3)
    assert_equal(jax.device_get(restored), jax.device_get(state))


def damage(step_directory):
    files = [p for p in step_directory.rglob("*") if p.is_file() and "ocdbt" not in p.name]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog):
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        for step in (1, 4):
            checkpointer.save(step, make_state(step))
        checkpointer.wait()
    damage(tmp_path / "4")
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0)))
        assert restored.step == 1
        assert f"{tmp_path / '4'} is damaged" in caplog.text
        # The run resumes from there, and saves before it reaches the step where it was.
        checkpointer.save(2, make_state(2))
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
        assert checkpointer.restore(abstract(make_state(0))).step == 2


def test_another_shape_names_the_parameter_and_both_shapes(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.wait()
        with pytest.raises(CheckpointError) as error:
            checkpointer.restore(abstract(make_state(1, size=16)))
    assert "opt_state/0/mu is of shape (8, 3) there, and here of shape (16, 3)" in str(error.value)
    assert str(tmp_path / "1") in str(error.value)


def test_nothing_to_restore(tmp_path):
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match="no checkpoint"),
    ):
        checkpointer.restore(abstract(make_state(0)))
    with pytest.raises(CheckpointError, match="no checkpoint of step None"):
        restore_part(tmp_path)


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_parameters_alone(tmp_path):
    state = make_state(3)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, state)
    params = restore_part(tmp_path)
    assert_equal(params, jax.device_get(state.params))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    with pytest.raises(CheckpointError, match="holds no 'ema_params'"):
        restore_part(tmp_path, name="ema_params")


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    state = make_state(1)
    expected = jax.device_get(state)
    step = jax.jit(functools.partial(jax.tree.map, lambda x: x + x), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        jax.block_until_ready(step(state))
        checkpointer.wait()
        assert_equal(jax.device_get(checkpointer.restore(abstract(expected))), expected)


@pytest.mark.parametrize("first", [0, 500])
def test_flipped_bits_are_found(first, tmp_path, caplog):
    """In the numbers, which the compression does not notice, and in what it has around them."""
    state = make_state(2, size=512)
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        checkpointer.save(1, make_state(1, size=512))
        checkpointer.save(2, state)
    # Which arrays share a file is a matter of time; they are written one after the other.
    for path in (tmp_path / "2").rglob("d/*"):
        content = bytearray(path.read_bytes())
        for i in range(first, len(content), 1000):
            content[i] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path / '2'} is damaged: "):
        restore_part(tmp_path)
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        assert checkpointer.restore(abstract(state)).step == 1
    assert f"{tmp_path / '2'} is damaged" in caplog.text


def test_a_damaged_description_of_a_checkpoint_is_named(tmp_path):
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step))
    description = tmp_path / "2" / "_CHECKPOINT_METADATA"
    description.write_text(description.read_text().replace("init_timestamp", "init_timestqmp"))
    for read in (lambda: Checkpointer(tmp_path, keep_last=2), lambda: restore_part(tmp_path)):
        with pytest.raises(CheckpointError, match=rf"{tmp_path}/2 is damaged: .*; move it away"):
            read()
    (tmp_path / "2").rename(tmp_path / "away")
    assert_equal(restore_part(tmp_path), jax.device_get(make_state(1).params))


def test_a_damaged_average_is_no_reason_to_take_the_parameters(tmp_path):
    state = make_state(1).replace(ema_params=make_state(2).params)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
    assert_equal(restore_params(tmp_path), jax.device_get(state.ema_params))
    description = tmp_path / "1" / "_CHECKPOINT_METADATA"
    written = json.loads(description.read_text())
    written["custom_metadata"]["checksums"]["ema_params/half"] += 1
    description.write_text(json.dumps(written))
    assert_equal(restore_part(tmp_path), jax.device_get(state.params))
    with pytest.raises(CheckpointError, match="is damaged: ema_params/half"):
        restore_params(tmp_path)


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_keeps_the_last_good_one(tmp_path):
    state = make_state(1, size=4096)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        with no_file_larger_than(10_000), pytest.raises(RunError) as error:
            checkpointer.save(2, make_state(2, size=4096))
            checkpointer.wait()
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: a checkpoint cannot be written: ")
    assert message.endswith("(complete are: 1)") and "\n" not in message
    with Checkpointer(tmp_path) as checkpointer:
        assert_equal(checkpointer.restore(abstract(state)), state)
        checkpointer.save(2, state)
        checkpointer.wait()
        assert checkpointer.latest_step() == 2
