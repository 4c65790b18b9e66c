"""Parameters from and to the formats of other programs."""

import pathlib
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from bucket import bucket

from vmoe_prc.checkpoints import safetensors as ours
from vmoe_prc.checkpoints.export import main
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.metadata import read_metadata
from vmoe_prc.checkpoints.params import open_params, read_params, write_params

RELEASED = pathlib.Path(__file__).parents[1] / "data" / "golden" / "vmoe_checkpoint" / "vmoe_tiny"
PARAMS = {
    "params/head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params/head/bias": np.arange(3).astype(jnp.bfloat16),
    "params/scale": np.float32(2).reshape(()),
}


def assert_same(params, other):
    assert params.keys() == other.keys()
    for name, x in params.items():
        assert x.dtype == other[name].dtype
        np.testing.assert_array_equal(x, other[name])


def test_reads_npz_files_with_and_without_a_level_of_parameters(tmp_path):
    x = np.arange(3.0)
    np.savez(tmp_path / "plain.npz", **{"head/kernel": x})
    np.savez(tmp_path / "nested.npz", **{"params/head/kernel": x, "step": 1})
    for name in ("plain.npz", "nested.npz"):
        params = read_params(tmp_path / name)
        assert list(params) == ["params/head/kernel"]
        np.testing.assert_array_equal(params["params/head/kernel"], x)


@pytest.mark.parametrize("name", ["model.safetensors", "vmoe"])
def test_round_trip(tmp_path, name):
    write_params(tmp_path / "new" / name, PARAMS)
    assert_same(read_params(tmp_path / "new" / name), PARAMS)


@pytest.mark.parametrize("name", ["run/model.safetensors", "run/vmoe"])
def test_round_trip_in_a_bucket(name):
    with bucket() as files:
        write_params(f"gs://bucket/{name}", PARAMS)
        assert any(file.startswith(f"/bucket/{name}") for file in files)
        assert_same(read_params(f"gs://bucket/{name}"), PARAMS)
        with pytest.raises(CheckpointError, match="gs://bucket/other"):
            read_params("gs://bucket/other")


def test_others_read_our_safetensors(tmp_path):
    float32 = {k: x for k, x in PARAMS.items() if x.dtype == np.float32}
    write_params(tmp_path / "x.safetensors", float32)
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert_same({f"params/{k}": x for k, x in theirs.items()}, float32)


def test_a_damaged_safetensors_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file"):
        ours.load(path)
    write_params(path, PARAMS)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: truncated"):
        ours.load(path)


def test_export(tmp_path, capsys):
    write_params(tmp_path / "vmoe", PARAMS)
    assert main([str(tmp_path / "vmoe"), str(tmp_path / "x.safetensors")]) == 0
    assert "3 arrays, 10 parameters" in capsys.readouterr().out
    assert_same(read_params(tmp_path / "x.safetensors"), PARAMS)
    assert main([str(tmp_path / "missing"), str(tmp_path / "y.safetensors")]) == 2
    assert "missing" in capsys.readouterr().err


def test_files_that_say_too_little_or_two_things(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    safetensors.numpy.save_file(
        {"a": np.zeros(2), "a/b": np.ones(2)}, tmp_path / "both.safetensors"
    )
    np.savez(tmp_path / "twice.npz", **{"opt/target/a": np.zeros(1), "a": np.ones(1)})
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "cut.npz", a=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:900])
    messages = {
        "empty.safetensors": "it has no arrays",
        "both.safetensors": "'a' is an array and a group",
        "twice.npz": "two arrays are named 'a'",
        "empty.npz": "has no arrays",
        "cut.npz": "cannot be read",
    }
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
            read_params(tmp_path / name)


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", a=np.array([Payload()], object), b=np.zeros(2))
    pathlib.Path("x.safetensors").write_bytes(pickle.dumps(Payload()))
    pathlib.Path("y.npz").write_bytes(pickle.dumps(Payload()))
    np.save("z.npz", np.array([Payload()], object))
    pathlib.Path("z.npz.npy").rename("z.npz")
    for name in ("x.npz", "x.safetensors", "y.npz", "z.npz"):
        with pytest.raises(CheckpointError) as error:
            read_params(name)
        assert "\n" not in str(error.value)
    assert not pathlib.Path("executed").exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.npz", "x.SAFETENSORS"])
def test_a_format_that_is_not_written_is_refused(name, tmp_path):
    with pytest.raises(CheckpointError, match=r"are not written; give FILE\.safetensors, or"):
        write_params(tmp_path / name, {"params/a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_a_number_is_part_of_a_prefix_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_params("~/vit.16", {"params/a": np.arange(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "vit.16.data-00000-of-00001",
        "vit.16.index",
    ]
    np.testing.assert_array_equal(read_params("~/vit.16")["params/a"], np.arange(2))


@pytest.mark.parametrize("target", ["model.safetensors", "vmoe"])
def test_an_export_knows_configuration_and_classes(target, finished, tmp_path, capsys):
    workdir, _ = finished
    assert main([str(workdir), str(tmp_path / target)]) == 0
    assert "10 named classes" in capsys.readouterr().out
    metadata = read_metadata(tmp_path / target)
    assert metadata["config"]["train_steps"] == 6
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    # A copy of a copy knows them, too.
    assert main([str(tmp_path / target), str(tmp_path / "again.safetensors")]) == 0
    assert read_metadata(tmp_path / "again.safetensors") == metadata


def test_parts_of_a_released_checkpoint_need_only_their_files(tmp_path):
    for path in RELEASED.parent.glob(f"{RELEASED.name}.*"):
        shutil.copy(path, tmp_path)
    prefix, name = tmp_path / RELEASED.name, "params/Encoder/encoder_norm/scale"
    expected = read_params(prefix)
    stored = open_params(prefix)
    assert {n: x.shape for n, x in stored.shapes.items()} == {
        n: x.shape for n, x in expected.items()
    }
    (tmp_path / f"{RELEASED.name}.data-00001-of-00002").unlink()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    [onto] = stored.read_onto({name: sharding}).values()
    assert onto.sharding == sharding
    for part in (onto, stored.read({name})[name]):
        np.testing.assert_array_equal(part, expected[name])
    with pytest.raises(CheckpointError, match="data-00001-of-00002: no such file"):
        stored.read(stored.shapes)


def test_parts_of_another_file(tmp_path):
    write_params(tmp_path / "x.safetensors", PARAMS)
    stored = open_params(tmp_path / "x.safetensors")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for name, value in PARAMS.items():
        np.testing.assert_array_equal(stored.read_onto({name: sharding})[name], value)
        np.testing.assert_array_equal(stored.read({name})[name], value)


def test_reads_the_current_checkpoints_of_v_moe(tmp_path):
    """Those that its program writes with Orbax: WORKDIR/ckpt/STEP/state."""
    state = {"step": np.int32(7), "params": {"head": {"kernel": np.arange(6.0).reshape(2, 3)}}}
    state |= {"opt_state": [{"mu": np.zeros(3)}, {}], "rngs": {"dropout": np.zeros(2, np.uint32)}}
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "dataset_iterator": ocp.JsonCheckpointHandler(),
    }
    with ocp.CheckpointManager(tmp_path / "ckpt", item_handlers=handlers) as manager:
        for step in (3, 7):
            args = {"state": ocp.args.PyTreeSave(state)}
            args["dataset_iterator"] = ocp.args.JsonSave({"last_seen_index": step})
            manager.save(step, args=ocp.args.Composite(**args))
    read = read_params(tmp_path)
    assert list(read) == ["params/head/kernel"]
    np.testing.assert_array_equal(read["params/head/kernel"], state["params"]["head"]["kernel"])
