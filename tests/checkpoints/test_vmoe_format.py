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
    with pytest.raises(CheckpointError, match=rf"{FILES[2]}: .*that the index does not have"):
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


def entry(shape=(4, 6), dtype="float32", boxes=(((0, 4), (0, 6)),), shards=(0,)):
    """An array as an index of V-MoE's format describes it."""
    boxes = [msgpack.packb([msgpack.packb((a, b, None)) for a, b in box]) for box in boxes]
    described = msgpack.packb((shape, dtype, False, {}))
    return msgpack.ExtType(8, msgpack.packb((described, boxes, shards)))


HALVES = (((0, 2), (0, 6)), ((2, 4), (0, 6)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": (((0, 4), (0, 7)),)}, r"a slice .*\(0, 7\).* of an array of shape \(4, 6\)"),
        ({"boxes": (((-1, 3), (0, 6)),)}, r"a slice .*-1"),
        ({"boxes": (((4, 0), (6, 0)),)}, r"a slice \(\(4, 0\)"),
        ({"boxes": (((0, 24),),)}, "a slice"),
        ({"boxes": (((0, 2), (0, 6)),)}, "leave holes or overlap"),
        ({"boxes": (((0, 2), (0, 6)), ((0, 2), (0, 6))), "shards": (0, 0)}, "holes or overlap"),
        # As many elements as the array has, but some twice and some not at all.
        ({"boxes": (((0, 3), (0, 6)), ((2, 3), (0, 6))), "shards": (0, 0)}, "holes or overlap"),
        ({"boxes": HALVES, "shards": (0,)}, "2 slices in 1 files"),
        ({"shards": (7,)}, r"a slice in file \(7,\) of 1"),
        ({"shape": (-4, -6), "boxes": ()}, r"an array of shape \(-4, -6\)"),
        ({"dtype": "O"}, "an array of dtype object"),
        ({"dtype": "S0"}, r"an array of dtype \|S0"),
        ({"dtype": "nothing"}, "nothing"),
        # 3.6 TiB, which nothing may ask the memory for.
        ({"shape": (4, 10**12), "boxes": (((0, 4), (0, 10**12)),)}, "16,000,000,000,000"),
    ],
)
def test_an_index_whose_slices_are_not_the_array(changes, message, tmp_path):
    prefix = tmp_path / "x"
    vmoe_format.save(prefix, {"a": np.arange(24, dtype=np.float32).reshape(4, 6)})
    edit_index(prefix, lambda content: content["index"].update(a=entry(**changes)))
    with pytest.raises(CheckpointError, match=message) as error:
        vmoe_format.restore(prefix)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("names", [{"a/b": 0}, {"": 0}, {3: 0}, [0], {"a": [0]}, {"a": None}])
def test_an_index_whose_names_are_none(names, tmp_path):
    vmoe_format.save(tmp_path / "x", {"a": np.zeros(2)})
    edit_index(tmp_path / "x", lambda content: content.update(index=names))
    with pytest.raises(CheckpointError, match="truncated, or of another format"):
        vmoe_format.restore(tmp_path / "x")


def test_damaged_files_never_give_memory_that_nobody_wrote(tmp_path):
    """Seeded damage of bytes anywhere: one clear error, or the arrays that the files have."""
    rng = np.random.default_rng(0)
    tree = {"a": np.arange(60, dtype=np.float32).reshape(12, 5), "b": {"c": np.arange(7)}}
    vmoe_format.save(tmp_path / "x", tree, num_shards=2)
    files = sorted(tmp_path.iterdir())
    contents = {file: file.read_bytes() for file in files}
    ends = {"refused": 0, "read": 0}
    for _ in range(400):
        file = files[rng.integers(len(files))]
        damaged = bytearray(contents[file])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(damaged)))
            match rng.integers(3):
                case 0:
                    damaged[at] = rng.integers(256)
                case 1:
                    del damaged[at : at + int(rng.integers(1, 40))]
                case 2:
                    damaged[at:at] = rng.bytes(int(rng.integers(1, 8)))
        file.write_bytes(damaged)
        try:
            restored = flat(vmoe_format.restore(tmp_path / "x"))
        except CheckpointError as error:
            ends["refused"] += 1
            assert len(str(error).splitlines()) == 1
        else:
            ends["read"] += 1
            if file.suffix == ".index":  # Names and dtypes may change, elements may not.
                elements = [x.astype(np.int64).tolist() for x in restored.values()]
                assert elements == [
                    x.astype(np.int64).tolist() for x in (tree["a"], tree["b"]["c"])
                ]
        file.write_bytes(contents[file])
    assert min(ends.values()) > 20
