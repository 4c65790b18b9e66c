"""The (data, expert) device mesh and where every array lives on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vmoe_prc.config import ConfigError

AxisRules = Sequence[tuple[str, Sequence[Any]]]

# Images are split over every device; the experts' weights over the `expert` axis alone.
BATCH_AXES = ("data", "expert")


def create_mesh(num_expert_partitions: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices as a (data, expert) mesh.

    Args:
      num_expert_partitions: Size of the `expert` axis: over how many devices the experts
        of one MoE layer are spread.
      devices: Devices to use; all of them by default.

    Raises:
      ConfigError: If there are fewer devices than partitions, or they do not divide.
    """
    devices = np.asarray(jax.devices() if devices is None else devices, dtype=object)
    if num_expert_partitions < 1 or devices.size % num_expert_partitions:
        raise ConfigError(
            "config.num_expert_partitions",
            num_expert_partitions,
            f"must divide the number of devices, which is {devices.size}",
        )
    return Mesh(
        devices.reshape(-1, num_expert_partitions),
        ("data", "expert"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree: Any, rules: AxisRules, mesh: Mesh) -> Any:
    """Gives each leaf the axes of the first rule whose regex is found in its name.

    Names are paths such as `params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel`; the
    optimiser's moments of a parameter end in the same words and so follow the same rule.

    Args:
      tree: Arrays or `jax.ShapeDtypeStruct`s.
      rules: Pairs (regex, axes), axes being mesh axis names (or None) per leading
        dimension. A leaf that no rule matches is replicated.
      mesh: The device mesh.

    Returns:
      A tree of `NamedSharding`s.

    Raises:
      ConfigError: If a rule names an axis the mesh lacks, matches no leaf, or if a
        dimension is not divisible by the axis it is split over.
    """
    compiled = [(re.compile(regex), tuple(axes)) for regex, axes in rules]
    used = set()

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for i, (regex, axes) in enumerate(compiled):
            if regex.search(name):
                used.add(i)
                _check_divisible(name, leaf.shape, axes, mesh)
                return NamedSharding(mesh, PartitionSpec(*axes))
        return replicated(mesh)

    shardings = jax.tree_util.tree_map_with_path(sharding, tree)
    for i, (regex, _) in enumerate(rules):
        if i not in used:
            raise ConfigError(f"config.params_axis_resources[{i}]", regex, "matches no parameter")
    return shardings


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Asks the compiler to lay `x` out over mesh axes; does nothing outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def _check_divisible(name: str, shape: Sequence[int], axes: Sequence[Any], mesh: Mesh):
    for dimension, axis in zip(shape, axes, strict=False):
        parts = (axis,) if isinstance(axis, str) else tuple(axis or ())
        unknown = [part for part in parts if part not in mesh.shape]
        if unknown:
            raise ConfigError(
                "config.params_axis_resources",
                unknown[0],
                f"unknown mesh axis; allowed: {', '.join(mesh.axis_names)}",
            )
        size = math.prod(mesh.shape[part] for part in parts)
        if dimension % size:
            raise ConfigError(
                "config.num_expert_partitions",
                size,
                f"must divide the leading dimension of {name}, of shape {tuple(shape)}",
            )
