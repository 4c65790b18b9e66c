"""Meshes and sharding rules."""

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime import mesh as mesh_lib

TREE = {
    "Moe": {"Mlp": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(4)}},
    "head": {"kernel": jnp.zeros((3, 2))},
}
RULES = [("Moe/Mlp/.*", ("expert",)), ("kernel", (None, "data"))]


@pytest.mark.parametrize("partitions", [1, 2, 4, 8])
def test_mesh(partitions):
    mesh = mesh_lib.create_mesh(partitions)
    assert dict(mesh.shape) == {"data": 8 // partitions, "expert": partitions}


def test_the_first_rule_that_matches_counts():
    shardings = mesh_lib.tree_shardings(TREE, RULES, mesh_lib.create_mesh(4))
    assert shardings["Moe"]["Mlp"]["kernel"].spec == PartitionSpec("expert")
    assert shardings["Moe"]["Mlp"]["bias"].spec == PartitionSpec("expert")
    assert shardings["head"]["kernel"].spec == PartitionSpec(None, "data")
    alone = mesh_lib.tree_shardings(TREE, RULES[:1], mesh_lib.create_mesh(4))
    assert alone["head"]["kernel"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("partitions", "rules", "message"),
    [
        (8, RULES, "num_expert_partitions = 8: must divide the leading dimension of Moe/Mlp/"),
        (4, [("Moe/Mpl", ("expert",))], r"axis_resources\[0\] = 'Moe/Mpl': matches no parameter"),
        (4, [("Moe", ("model",))], "'model': unknown mesh axis; allowed: data, expert"),
    ],
)
def test_rules_that_do_not_fit(partitions, rules, message):
    with pytest.raises(ConfigError, match=message):
        mesh_lib.tree_shardings(TREE, rules, mesh_lib.create_mesh(partitions))


@pytest.mark.parametrize("partitions", [0, 3, 16])
def test_partitions_that_do_not_divide_the_devices(partitions):
    with pytest.raises(ConfigError, match="must divide the number of devices, which is 8"):
        mesh_lib.create_mesh(partitions)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((32, 64), (None, ("data", "expert"))),
        ((64, 4, 8), (("data", "expert"),)),
        ((32, 10), (("data", "expert"),)),
        ((3, 10), ()),
    ],
)
def test_kernels_are_split_along_the_largest_dimension_that_divides(shape, spec):
    assert mesh_lib.kernel_spec(shape, 8) == PartitionSpec(*spec)
    rules = [("Moe", ("expert",))]
    tree = {"Moe": {"kernel": jnp.zeros((4, 32))}, "x": {"kernel": jnp.zeros(shape)}}
    split = mesh_lib.tree_shardings(tree, rules, mesh_lib.create_mesh(4), shard_kernels=True)
    assert split["x"]["kernel"].spec == PartitionSpec(*spec)
    assert split["Moe"]["kernel"].spec == PartitionSpec("expert")
