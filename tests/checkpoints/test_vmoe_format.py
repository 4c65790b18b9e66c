"""Checkpoints in the format of the released V-MoE models."""

import pathlib
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmoe_prc.checkpoints import vmoe_format
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.runtime.mesh import create_mesh

RELEASED = (
    pathlib.Path(__file__).parent.parent / "data" / "golden" / "vmoe_checkpoint" / "vmoe_tiny"
)
FILES = ["index", "data-00000-of-00002", "data-00001-of-00002"]
KERNEL = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def copied(tmp_path):
    for end in FILES:
        shutil.copy(f"{RELEASED}.{end}", tmp_path)
    return tmp_path / "vmoe_tiny"


def edit_index(prefix, edit):
    path = pathlib.Path(f"{prefix}.index")
    content = msgpack.unpackb(path.read_bytes())
    edit(content)
    path.write_bytes(msgpack.packb(content))


def test_reads_what_the_released_program_wrote(golden):
    arrays = flat(vmoe_format.restore(RELEASED))
    expected = golden("vit_moe_token_k2")
    names = [name for name in expected if name.startswith("params/")]
    assert set(arrays) == {*names, "step", "extra/bf16"}
    for name in names:
        np.testing.assert_array_equal(arrays[name], expected[name])
        assert isinstance(arrays[name], np.ndarray)
    assert arrays["step"] == 1234
    assert arrays["extra/bf16"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(arrays["extra/bf16"], np.arange(12).reshape(3, 4))


def test_reads_files_from_before_versions(copied):
    edit_index(copied, lambda content: content.pop("version"))
    assert_same(vmoe_format.restore(copied), vmoe_format.restore(RELEASED))


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_round_trip(tmp_path, num_shards):
    tree = vmoe_format.restore(RELEASED)
    vmoe_format.save(tmp_path / "new" / "saved", tree, num_shards)
    assert_same(vmoe_format.restore(tmp_path / "new" / "saved"), tree)
    files = sorted((tmp_path / "new").glob("saved.data-*"))
    assert [f.name[-8:] for f in files] == [f"of-{num_shards:05d}"] * num_shards
    sizes = [f.stat().st_size for f in files]
    assert max(sizes) < 1.2 * min(sizes)
    assert len(list((tmp_path / "new").iterdir())) == num_shards + 1


@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]),
    num_shards=st.integers(1, 4),
)
def test_any_shape_and_dtype_survives(tmp_path_factory, shape, dtype, num_shards):
    prefix = tmp_path_factory.mktemp("format") / "x"
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(jnp.dtype(dtype))
    vmoe_format.save(prefix, {"a": x, "b": {"c": x.T, "d": {}}}, num_shards)
    assert_same(vmoe_format.restore(prefix), {"a": x, "b": {"c": x.T, "d": {}}})


@pytest.mark.parametrize("spec", [P(), P("expert"), P("expert", "data"), P(None, ("data",))])
def test_reads_onto_devices(golden, spec):
    sharding = NamedSharding(create_mesh(4), spec)
    arrays = vmoe_format.restore(
        RELEASED, flax.traverse_util.unflatten_dict({KERNEL: sharding}, sep="/")
    )
    (kernel,) = jax.tree.leaves(arrays)
    assert kernel.sharding == sharding
    np.testing.assert_array_equal(kernel, golden("vit_moe_token_k2")[KERNEL])


def test_opens_only_the_files_that_are_needed(golden, copied):
    name = "params/Encoder/encoder_norm/scale"
    pathlib.Path(f"{copied}.data-00001-of-00002").unlink()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = flax.traverse_util.unflatten_dict({name: sharding}, sep="/")
    arrays = flat(vmoe_format.restore(copied, shardings))
    np.testing.assert_array_equal(arrays[name], golden("vit_moe_token_k2")[name])
    with pytest.raises(CheckpointError, match="data-00001-of-00002: no such file"):
        vmoe_format.restore(copied)


def test_an_array_that_is_not_there(copied):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(CheckpointError, match=r"vmoe_tiny\.index: no array 'params/nothing'"):
        vmoe_format.restore(copied, {"params": {"nothing": sharding}})


@pytest.mark.parametrize("end", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_a_damaged_file_is_named(copied, end, damage):
    path = pathlib.Path(f"{copied}.{end}")
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2]}.get(damage, b"no msgpack")
    )
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{end}: (no such file|truncated)"):
        vmoe_format.restore(copied)


def test_a_data_file_in_the_place_of_another(copied):
    shutil.copy(f"{copied}.{FILES[1]}", f"{copied}.{FILES[2]}")
    with pytest.raises(CheckpointError, match=rf"{FILES[2]}: .*is not as the index describes it"):
        vmoe_format.restore(copied)


def test_a_data_file_that_lacks_an_array(copied):
    path = pathlib.Path(f"{copied}.{FILES[2]}")
    content = msgpack.unpackb(path.read_bytes())
    del content["1"]
    path.write_bytes(msgpack.packb(content))
    with pytest.raises(CheckpointError, match=rf"{FILES[2]}: .*lacks a slice of params/Encoder"):
        vmoe_format.restore(copied)


def test_a_version_from_the_future(copied):
    edit_index(copied, lambda content: content.update(version="29990101"))
    with pytest.raises(CheckpointError, match="version '29990101'; only 20220622"):
        vmoe_format.restore(copied)


def test_number_of_files(tmp_path):
    with pytest.raises(ValueError, match="num_shards = 0: must be at least 1"):
        vmoe_format.save(tmp_path / "x", {}, 0)
